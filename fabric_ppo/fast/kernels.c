/* PPO's loss with its gradient, acting, clipping and Adam, for perceptrons on the CPU.
 *
 * kernels.py compiles this file twice, with REAL as float and as double. Matrices are row-major.
 * Every sum over inner indices is added up in their order, one fused multiply-add each, so a row of
 * a product has the same bits in any batch. */

#include <float.h>
#include <math.h>
#include <string.h>

#include "vectors.h"

enum { NO_ACTIVATION, RELU, TANH };

/* A layer: its sizes, and where its weights [outputs, inputs] are in the vector of all weights. Its
 * biases follow them. */
typedef struct {
    count inputs, outputs, place, activation;
} layer;

typedef struct {
    count num_layers;
    const layer *layers;
} network;

/* How observations, rows of numbers, are encoded: as they are (of type real), or as numbers of another
 * type, or normalised by mean and standard deviation [inputs], unless NULL, and clipped. */
enum { AS_THEY_ARE, FROM_FLOAT, FROM_DOUBLE };

typedef struct {
    count source;
    const double *mean, *std;
    double bound;
} encoding;

/* An agent. A trunk may have no layers; heads that share one have a layer each. Memory: weights
 * transposed, see `transpose`; and for `block_rows` rows encoded observations, values of the layers of
 * each network, slopes of the policy's outputs and of the trunk's, and scratch. */
typedef struct {
    count num_weights, block_rows, is_gaussian, place_of_std;
    double least_log_std, most_log_std;
    encoding encoding;
    network trunk, policy, value;
    const real *weights;
    real *transposed, *encoded, *trunk_values, *policy_values, *value_values, *policy_slopes, *trunk_slopes, *scratch;
} agent;

/* Rows of a minibatch, [b] each but for observations [b, inputs] and a Box's actions [b, n]. */
typedef struct {
    count rows;
    const void *obs, *actions;
    const real *log_probs, *values, *advantages, *returns, *weights;
} minibatch;

typedef struct {
    double clip_coef, vf_coef, ent_coef;
    count clip_vloss;
} coefficients;

/* ---- products ------------------------------------------------------------------------------ */

#define PANEL (2 * LANES) /* columns of a tile */
#define TILE 6            /* rows of a tile: all its sums fit into the vector registers */

/* A tile of `product`: `rows` rows by `vectors` vectors of columns, both constants. */
static inline __attribute__((always_inline)) void tile(
    count rows, count vectors, const real *a, count a_row, count a_inner, const real *panel, count stride, real *c,
    count c_row, count inner, count width, int adds)
{
    vector sums[TILE][2];
    for (count r = 0; r < rows; r++)
        sums[r][0] = sums[r][1] = (vector){0};
    for (count p = 0; p < inner; p++)
        for (count r = 0; r < rows; r++)
            for (count v = 0; v < vectors; v++)
                sums[r][v] += a[r * a_row + p * a_inner] * *(const vector *)(panel + p * stride + v * LANES);
    for (count r = 0; r < rows; r++) {
        real *out = c + r * c_row;
        for (count v = 0; v < vectors && width == vectors * LANES; v++) {
            vector *to = (vector *)(out + v * LANES);
            *to = adds ? *to + sums[r][v] : sums[r][v];
        }
        for (count j = 0; j < width && width < vectors * LANES; j++) {
            real sum = sums[r][j / LANES][j % LANES];
            out[j] = adds ? out[j] + sum : sum;
        }
    }
}

#define TILES(rows, vectors) \
    case rows: \
        tile(rows, vectors, from, a_row, a_inner, panel, stride, to, columns, inner, width, adds); \
        break;

/* c[r, j] = sum over p of a[r, p] b[p, j], or added to what c holds. The element a[r, p] is at
 * r * a_row + p * a_inner; b is [inner, columns]. */
static void product(const real *a, count a_row, count a_inner, const real *b, real *c, count rows, count inner,
                    count columns, int adds, real *scratch)
{
    for (count j = 0; j < columns; j += PANEL) {
        count width = least(PANEL, columns - j), is_narrow = width <= LANES, stride = columns;
        const real *panel = b + j;
        count padded = is_narrow ? LANES : PANEL;
        if (width < padded) { /* a copy with columns of zeros */
            for (count p = 0; p < inner; p++)
                for (count k = 0; k < padded; k++)
                    scratch[p * padded + k] = k < width ? b[p * columns + j + k] : 0;
            panel = scratch, stride = padded;
        }
        for (count r = 0; r < rows; r += TILE) {
            const real *from = a + r * a_row;
            real *to = c + r * columns + j;
            if (is_narrow)
                switch (least(TILE, rows - r)) { TILES(6, 1) TILES(5, 1) TILES(4, 1) TILES(3, 1) TILES(2, 1) TILES(1, 1) }
            else
                switch (least(TILE, rows - r)) { TILES(6, 2) TILES(5, 2) TILES(4, 2) TILES(3, 2) TILES(2, 2) TILES(1, 2) }
        }
    }
}

/* ---- layers -------------------------------------------------------------------------------- */

/* tanh; in float by a rational function, which vectorises: a minimax fit of tanh x / x by a quotient
 * of polynomials of x^2, to 6e-9 of its value. */
static inline real tanh_of(real x)
{
    if (sizeof(real) > 4)
        return (real)tanh(x);
    const float reach = 7.9f;
    float y = (float)x, z = y < -reach ? -reach : y > reach ? reach : y, s = z * z;
    float p = 9.999999944e-01f + s * (1.345062576e-01f + s * (3.578998203e-03f + s * (2.202334789e-05f + s * 1.542811911e-08f)));
    float q = 1.0f + s * (4.678395377e-01f + s * (2.619226141e-02f + s * (3.423660693e-04f + s * 8.598839042e-07f)));
    return (real)(z * p / q);
}

/* Add the biases to sums [rows, width], and apply the activation, in place. */
static void activate(real *sums, const real *bias, count rows, count width, count activation)
{
    for (count r = 0; r < rows; r++) {
        real *row = sums + r * width;
        if (activation == NO_ACTIVATION)
            for (count i = 0; i < width; i++)
                row[i] += bias[i];
        else if (activation == RELU)
            for (count i = 0; i < width; i++) {
                real sum = row[i] + bias[i];
                row[i] = sum < 0 ? 0 : sum; /* NaN stays */
            }
        else
            for (count i = 0; i < width; i++)
                row[i] = tanh_of(row[i] + bias[i]);
    }
}

/* Backpropagate slopes [rows, width] through an activation, in place; add their sum to of_bias. */
static void through_activation(real *restrict slopes, const real *restrict outputs, real *restrict of_bias, count rows,
                               count width, count activation)
{
    for (count r = 0; r < rows; r++) {
        real *slope = slopes + r * width;
        const real *y = outputs + r * width;
        /* both derivatives are functions of the output y: 1 - y^2 of tanh, [y > 0] of ReLU */
        if (activation == TANH)
            for (count i = 0; i < width; i++)
                slope[i] *= 1 - y[i] * y[i];
        else if (activation == RELU)
            for (count i = 0; i < width; i++)
                slope[i] = y[i] > 0 ? slope[i] : 0;
        for (count i = 0; i < width; i++)
            of_bias[i] += slope[i];
    }
}

/* Return the width of the observations. */
static count inputs_of(const agent *a) { return (a->trunk.num_layers ? &a->trunk : &a->policy)->layers->inputs; }

/* Return the features of `rows` observations from row `first` on, [rows, inputs]. */
static const real *encode(const agent *a, const void *obs, count first, count rows)
{
    const encoding *e = &a->encoding;
    count inputs = inputs_of(a), start = first * inputs;
    if (e->source == AS_THEY_ARE)
        return (const real *)obs + start;
    for (count i = 0; i < rows * inputs; i++)
        a->encoded[i] = e->source == FROM_FLOAT ? (real)((const float *)obs)[start + i] : (real)((const double *)obs)[start + i];
    const real bound = (real)e->bound;
    for (count r = 0; r < rows && e->mean; r++)
        for (count j = 0; j < inputs; j++) {
            real *at = a->encoded + r * inputs + j, scaled = (*at - (real)e->mean[j]) / (real)e->std[j];
            *at = scaled < -bound ? -bound : scaled > bound ? bound : scaled;
        }
    return a->encoded;
}

static count width_of(const network *net)
{
    count width = 0;
    for (count k = 0; k < net->num_layers; k++)
        width += net->layers[k].outputs;
    return width;
}

static void transpose_layers(const agent *a, const network *net)
{
    for (count k = 0; k < net->num_layers; k++) {
        layer l = net->layers[k];
        const real *from = a->weights + l.place;
        real *to = a->transposed + l.place;
        for (count i = 0; i < l.outputs; i++)
            for (count j = 0; j < l.inputs; j++)
                to[j * l.outputs + i] = from[i * l.inputs + j];
        memcpy(to + l.inputs * l.outputs, from + l.inputs * l.outputs, l.outputs * sizeof(real));
    }
}

/* Fill `transposed`, which `forward` reads, so that its products run along the rows of matrices. */
void transpose(const agent *a)
{
    transpose_layers(a, &a->trunk);
    transpose_layers(a, &a->policy);
    transpose_layers(a, &a->value);
}

/* Compute the outputs of a network; `values` holds the outputs of all layers, one after the other. */
static const real *forward(const real *transposed, const network *net, const real *features, count rows, real *values,
                           real *scratch)
{
    const real *inputs = features;
    for (count k = 0; k < net->num_layers; k++) {
        layer l = net->layers[k];
        const real *weight = transposed + l.place;
        product(inputs, l.inputs, 1, weight, values, rows, l.inputs, l.outputs, 0, scratch);
        activate(values, weight + l.inputs * l.outputs, rows, l.outputs, l.activation);
        inputs = values;
        values += rows * l.outputs;
    }
    return inputs;
}

/* Add the gradient of a network's weights to `gradient`, for slopes at its outputs [rows, outputs].
 * Return the slopes at the first layer's sums W x + b. `values` is what `forward` filled. */
static real *backward(const real *weights, real *gradient, const network *net, const real *features, count rows,
                      const real *values, real *slopes, real *scratch)
{
    const real *outputs = values + rows * width_of(net);
    real *below = scratch, *other = scratch, *rest = scratch;
    for (count k = 0; k < net->num_layers; k++) { /* two buffers for slopes, as wide as the widest layer */
        count size = rows * net->layers[k].outputs;
        other = below + size > other ? below + size : other;
    }
    rest = other + (other - below);
    for (count k = net->num_layers - 1; k >= 0; k--) {
        layer l = net->layers[k];
        real *of_weight = gradient + l.place;
        outputs -= rows * l.outputs;
        through_activation(slopes, outputs, of_weight + l.inputs * l.outputs, rows, l.outputs, l.activation);
        const real *inputs = k ? outputs - rows * l.inputs : features;
        /* with sums s = x W^T + b and their gradient g: dL/dW = g^T x, the sum of outer products */
        product(slopes, 1, l.outputs, inputs, of_weight, l.outputs, rows, l.inputs, 1, rest);
        if (k) { /* dL/dx = g W, the gradient for the layer before */
            product(slopes, l.outputs, 1, weights + l.place, below, rows, l.outputs, l.inputs, 0, rest);
            slopes = below;
            below = other, other = slopes;
        }
    }
    return slopes;
}

/* ---- the loss ------------------------------------------------------------------------------ */

/* The logged parts of the loss, in the order of `Losses` in ppo/loss.py. */
typedef struct {
    double policy_loss, value_loss, entropy_loss, approx_kl, clip_fraction;
} parts;

typedef struct {
    double log_prob, value;
} slopes_of;

/* Add a row's parts of the loss to `sums`; return the derivatives of its loss, but for the entropy's, by
 * the log-probability and the value. */
static slopes_of objective_of(double log_prob, double entropy, double value, const minibatch *m, count row,
                              const coefficients *c, parts *sums)
{
    double advantage = m->advantages[row], target = m->returns[row], weight = m->weights[row], clip = c->clip_coef;
    /* the clipped surrogate, equation 7 of arXiv 1707.06347; d ratio / d log p = ratio, and where the
     * minimum is the clipped side, it is constant */
    double log_ratio = log_prob - m->log_probs[row], ratio = exp(log_ratio);
    double bounded = ratio < 1 - clip ? 1 - clip : ratio > 1 + clip ? 1 + clip : ratio;
    double surrogate = advantage * ratio, clipped = advantage * bounded;
    int is_clipped = surrogate > clipped;
    double slope = is_clipped ? 0 : -weight * surrogate;
    double error = value - target, squared = error * error, value_slope = error;
    if (c->clip_vloss) {
        double moved = value - m->values[row], within = moved < -clip ? -clip : moved > clip ? clip : moved;
        double other = m->values[row] + within - target;
        if (other * other > squared) {
            squared = other * other;
            value_slope = within == moved ? other : 0;
        }
    }
    sums->policy_loss -= weight * (is_clipped ? clipped : surrogate);
    sums->value_loss += 0.5 * weight * squared;
    sums->entropy_loss -= weight * entropy;
    sums->approx_kl += weight * (ratio - 1 - log_ratio);
    sums->clip_fraction += fabs(ratio - 1) > clip ? weight : 0;
    return (slopes_of){slope, c->vf_coef * weight * value_slope};
}

/* Compute the gradient of the loss of a block of rows from row `first` on, by logits [block, n] and
 * values [block], and add its parts to `sums`. Logits are overwritten by log-probabilities, values by the
 * gradient by them. Return false if an action is none of the agent's. */
static int categorical(real *logits, real *values, count n, const minibatch *m, count first, count rows,
                       const coefficients *c, parts *sums, real *slopes)
{
    for (count i = 0; i < rows; i++, logits += n, slopes += n) {
        count row = first + i, action = ((const int64_t *)m->actions)[row];
        double largest = logits[0], total = 0, entropy = 0;
        for (count j = 1; j < n; j++)
            largest = logits[j] > largest ? logits[j] : largest;
        for (count j = 0; j < n; j++) {
            double p = exp(logits[j] - largest);
            slopes[j] = (real)p;
            total += p;
        }
        double log_total = largest + log(total);
        for (count j = 0; j < n; j++) {
            logits[j] = (real)(logits[j] - log_total);
            entropy -= slopes[j] / total * logits[j];
        }
        if (action < 0 || action >= n)
            return 0;
        slopes_of at = objective_of(logits[action], entropy, values[i], m, row, c, sums);
        /* d log p[a] / d logits = onehot(a) - p;  d entropy / d logits = -p (log p + entropy) */
        double of_entropy = c->ent_coef * m->weights[row];
        for (count j = 0; j < n; j++)
            slopes[j] = (real)(slopes[j] * (of_entropy * (logits[j] + entropy) - at.log_prob) / total);
        slopes[action] += (real)at.log_prob;
        values[i] = (real)at.value;
    }
    return 1;
}

/* As `categorical`, for independent normals; the gradient by log_std [n] is added to of_log_std. */
static void gaussian(const real *means, real *values, count n, const minibatch *m, count first, count rows,
                     const coefficients *c, parts *sums, real *slopes, const double *log_std, real *of_log_std)
{
    const double log_sqrt_2pi = 0.91893853320467274178;
    double constant = 0, entropy = 0, inverse_std[n];
    for (count j = 0; j < n; j++) {
        inverse_std[j] = exp(-log_std[j]);
        constant -= log_std[j] + log_sqrt_2pi;
        entropy += log_std[j] + 0.5 + log_sqrt_2pi;
    }
    for (count i = 0; i < rows; i++, means += n, slopes += n) {
        count row = first + i;
        const real *actions = (const real *)m->actions + row * n;
        double log_prob = constant;
        for (count j = 0; j < n; j++) {
            double z = ((double)actions[j] - means[j]) * inverse_std[j];
            log_prob -= 0.5 * z * z;
            slopes[j] = (real)z;
        }
        slopes_of at = objective_of(log_prob, entropy, values[i], m, row, c, sums);
        /* d log p / d mean = z / std;  d log p / d log std = z^2 - 1;  d entropy / d log std = 1 */
        for (count j = 0; j < n; j++) {
            double z = slopes[j];
            slopes[j] = (real)(at.log_prob * z * inverse_std[j]);
            of_log_std[j] += (real)(at.log_prob * (z * z - 1) - c->ent_coef * m->weights[row]);
        }
        values[i] = (real)at.value;
    }
}

/* Return the loss of a minibatch; compute its gradient [num_weights] and its parts. */
double minibatch_loss(const agent *a, const minibatch *m, const coefficients *c, real *gradient, parts *sums)
{
    const layer *heads = a->policy.layers, *last = heads + a->policy.num_layers - 1;
    count n = last->outputs;
    double log_std[n];
    real *of_log_std = gradient + a->place_of_std;
    int are_actions = 1;
    if (a->is_gaussian)
        for (count j = 0; j < n; j++) {
            double free = a->weights[a->place_of_std + j];
            log_std[j] = free < a->least_log_std ? a->least_log_std : free > a->most_log_std ? a->most_log_std : free;
        }
    memset(gradient, 0, a->num_weights * sizeof(real));
    *sums = (parts){0};
    transpose(a);
    for (count first = 0; first < m->rows; first += a->block_rows) {
        count rows = least(a->block_rows, m->rows - first);
        const real *features = encode(a, m->obs, first, rows);
        const real *shared = forward(a->transposed, &a->trunk, features, rows, a->trunk_values, a->scratch);
        real *outputs = (real *)forward(a->transposed, &a->policy, shared, rows, a->policy_values, a->scratch);
        real *values = (real *)forward(a->transposed, &a->value, shared, rows, a->value_values, a->scratch);
        real *slopes = a->policy_slopes;
        if (a->is_gaussian)
            gaussian(outputs, values, n, m, first, rows, c, sums, slopes, log_std, of_log_std);
        else
            are_actions &= categorical(outputs, values, n, m, first, rows, c, sums, slopes);
        /* the values have become the slopes of the loss by them */
        backward(a->weights, gradient, &a->policy, shared, rows, a->policy_values, slopes, a->scratch);
        backward(a->weights, gradient, &a->value, shared, rows, a->value_values, values, a->scratch);
        if (a->trunk.num_layers) { /* both heads send their gradients into the trunk, where they add up */
            layer value = a->value.layers[0];
            product(slopes, n, 1, a->weights + heads->place, a->trunk_slopes, rows, n, heads->inputs, 0, a->scratch);
            product(values, 1, 1, a->weights + value.place, a->trunk_slopes, rows, 1, value.inputs, 1, a->scratch);
            backward(a->weights, gradient, &a->trunk, features, rows, a->trunk_values, a->trunk_slopes, a->scratch);
        }
    }
    if (a->is_gaussian)
        for (count j = 0; j < n; j++) /* beyond a bound there is no gradient */
            if (log_std[j] != a->weights[a->place_of_std + j])
                of_log_std[j] = 0;
    double loss = sums->policy_loss + c->vf_coef * sums->value_loss + c->ent_coef * sums->entropy_loss;
    return are_actions ? loss : NAN;
}

/* ---- acting -------------------------------------------------------------------------------- */

/* Draw actions: of a choice argmax(logits + gumbel), to `chosen` [rows]; else outputs + noise, the
 * noise being multiplied by the standard deviation where there is one, to `perturbed` [rows, n]. */
void draw(const real *outputs, const real *noise, count rows, count n, int64_t *chosen, real *perturbed)
{
    for (count i = 0; i < rows; i++, outputs += n, noise += n) {
        count best = 0;
        for (count j = 0; j < n; j++) {
            if (perturbed)
                perturbed[i * n + j] = outputs[j] + noise[j];
            else if (outputs[j] + noise[j] > outputs[best] + noise[best])
                best = j;
        }
        if (chosen)
            chosen[i] = best;
    }
}

/* Compute the policy's outputs [rows, n] for observations, and draw actions; after `transpose`. */
void act(const agent *a, const void *obs, count rows, const real *noise, real *outputs, int64_t *chosen,
         real *perturbed)
{
    count n = a->policy.layers[a->policy.num_layers - 1].outputs;
    for (count first = 0; first < rows; first += a->block_rows) {
        count block = least(a->block_rows, rows - first);
        const real *shared = forward(a->transposed, &a->trunk, encode(a, obs, first, block), block, a->trunk_values, a->scratch);
        const real *last = forward(a->transposed, &a->policy, shared, block, a->policy_values, a->scratch);
        memcpy(outputs + first * n, last, block * n * sizeof(real));
    }
    draw(outputs, noise, rows, n, chosen, perturbed);
}

/* Compute the values [rows] of observations; after `transpose`. */
void values(const agent *a, const void *obs, count rows, real *out)
{
    for (count first = 0; first < rows; first += a->block_rows) {
        count block = least(a->block_rows, rows - first);
        const real *shared = forward(a->transposed, &a->trunk, encode(a, obs, first, block), block, a->trunk_values, a->scratch);
        memcpy(out + first, forward(a->transposed, &a->value, shared, block, a->value_values, a->scratch), block * sizeof(real));
    }
}

/* ---- the step ------------------------------------------------------------------------------ */

/* Scale a gradient [n] down to the norm `most`, as torch.nn.utils.clip_grad_norm_ does; return its
 * norm from before. */
double clip(real *gradient, count n, double most)
{
    double sums[32] = {0}; /* so many at a time */
    count rest = n % 32;
    for (count i = 0; i < n - rest; i += 32)
        for (count k = 0; k < 32; k++)
            sums[k] += (double)gradient[i + k] * gradient[i + k];
    for (count i = n - rest; i < n; i++)
        sums[0] += (double)gradient[i] * gradient[i];
    for (count k = 1; k < 32; k++)
        sums[0] += sums[k];
    double norm = sqrt(sums[0]), scale = most / (norm + 1e-6);
    if (!(scale >= 1)) /* what is not finite is to be seen in the gradient */
        for (count i = 0; i < n; i++)
            gradient[i] *= (real)scale;
    return norm;
}

/* Numbers below the smallest normal one take a hundred times as long: those of a unit that is never
 * active would pass through them. */
static inline real without_denormals(real x)
{
    const real normal = sizeof(real) > 4 ? (real)DBL_MIN : FLT_MIN;
    return x < normal && x > -normal ? 0 : x;
}

/* Take an Adam step (algorithm 1 of arXiv 1412.6980) with weights, gradient and moments [n]. */
void adam(real *restrict weights, const real *restrict gradient, real *restrict means, real *restrict squares, count n,
          float *step, double rate, double beta1, double beta2, double eps)
{
    *step += 1;
    const real size = (real)(rate / (1 - pow(beta1, *step)));
    const real inverse_root = (real)(1 / sqrt(1 - pow(beta2, *step)));
    const real new1 = (real)(1 - beta1), old2 = (real)beta2, new2 = (real)(1 - beta2), small = (real)eps;
    for (count i = 0; i < n; i++) {
        real g = gradient[i], mean = without_denormals(means[i] + new1 * (g - means[i]));
        real square = without_denormals(old2 * squares[i] + new2 * g * g);
        means[i] = mean, squares[i] = square;
        weights[i] -= size * mean / ((sizeof(real) > 4 ? (real)sqrt(square) : (real)sqrtf(square)) * inverse_root + small);
    }
}
