/* Convolutions of bytes with rectifiers, and their gradient.
 *
 * kernels.py compiles this file beside kernels.c. An image goes through all layers at once: its numbers
 * between the layers stay in the cache. Each image is computed by itself, and every sum in the order of
 * its inner indices, so an image has the same bits in any batch.
 *
 * Images of the first layer are planes [groups, height, width, depth] of bytes; those of the others have
 * one group, with the channels on the last axis. A window is `segments` of `run` numbers side by side. */

#include <string.h>

#include "vectors.h"

/* Positions whose sums fit into the vector registers, and numbers of a window that share a gradient's. */
#ifdef __AVX512F__
#define TILE 10
#define RUN 8
#else
#define TILE 5
#define RUN 4
#endif

/* A layer: sizes of its images, its windows, its outputs [out_height, out_width, outputs]. Memory:
 * `weights` [groups * kernel * kernel * depth, outputs] and `biases`; `back`, the weights for the
 * gradient of the images, [stride, stride, (kernel / stride)^2 * outputs, depth], NULL in the first layer;
 * `values`, its outputs for all rows, or for the last one where `values_row` is 0; `slopes`, their
 * gradients for one row, with a border of kernel / stride zeros; the gradients of weights and biases. */
typedef struct {
    count groups, height, width, depth, kernel, stride, outputs, out_height, out_width, values_row;
    const real *weights, *biases, *back;
    real *values, *slopes, *weights_gradient, *biases_gradient;
} convolution;

/* A window: where it begins, in each group, and how many numbers apart its parts are. */
typedef struct {
    const real *begin;
    count groups, group_step, segments, segment_step, run;
} window;

/* Where sums go, `step` numbers apart: rectified with `biases`; or where `values` are given, which are
 * `values_step` apart, as gradients of rectified numbers. */
typedef struct {
    real *sums;
    count step;
    const real *biases, *values;
    count values_step;
} target;

typedef __typeof__((vector){0} < (vector){0}) mask;

/* Numbers where `condition` holds, else 0. NaN stays what it is, as the conditions are of what to drop. */
static inline vector unless(mask condition, vector numbers) { return (vector)(~condition & (mask)numbers); }

/* Sums of `tile` windows that are `step` numbers apart, for `vectors` vectors of outputs; constants. */
static inline __attribute__((always_inline)) void tile(
    count tile, count vectors, count step, window from, const real *weights, count outputs, target to)
{
    const vector zero = {0};
    vector sums[TILE][2];
    for (count t = 0; t < tile; t++)
        sums[t][0] = sums[t][1] = zero;
    for (count g = 0; g < from.groups; g++)
        for (count s = 0; s < from.segments; s++) {
            const real *at = from.begin + g * from.group_step + s * from.segment_step;
            for (count r = 0; r < from.run; r++, weights += outputs)
                for (count v = 0; v < vectors; v++) {
                    const vector weight = *(const vector *)(weights + v * LANES);
                    for (count t = 0; t < tile; t++)
                        sums[t][v] += at[t * step + r] * weight;
                }
        }
    for (count t = 0; t < tile; t++)
        for (count v = 0; v < vectors; v++) {
            vector *sum = (vector *)(to.sums + t * to.step + v * LANES);
            if (to.values)
                *sum = unless(*(const vector *)(to.values + t * to.values_step + v * LANES) <= zero, sums[t][v]);
            else {
                const vector shifted = sums[t][v] + *(const vector *)(to.biases + v * LANES);
                *sum = unless(shifted < zero, shifted);
            }
        }
}

#define TILES(positions, step) \
    if (vectors == 2) \
        tile(positions, 2, step, from, weights, outputs, to); \
    else \
        tile(positions, 1, step, from, weights, outputs, to);

/* `positions` windows, as many as `fitting` returns. The usual distances between windows are constants. */
static void some(count positions, count step, count vectors, window from, const real *weights, count outputs, target to)
{
    switch (positions * 100 + (positions > 5 ? step : 0)) {
#ifdef __AVX512F__
    case 1004: TILES(10, 4) break;
    case 1032: TILES(10, 32) break;
    case 1064: TILES(10, 64) break;
    case 932: TILES(9, 32) break;
    case 964: TILES(9, 64) break;
    case 764: TILES(7, 64) break;
#endif
    case 500: TILES(5, step) break;
    default: TILES(1, step)
    }
}

/* The most windows, of `width` ones that are `step` numbers apart, that `some` takes at once. */
static count fitting(count width, count step)
{
#ifdef __AVX512F__
    if (width >= 10 && (step == 4 || step == 32 || step == 64))
        return 10;
    if (width == 9 && (step == 32 || step == 64))
        return 9;
    if (width >= 7 && step == 64)
        return 7;
#endif
    return width >= 5 ? 5 : 1;
}

/* Sums of a row of `width` windows, `step` numbers apart. `weights` are [segments * run, outputs]. */
static void line(count width, count step, window from, const real *weights, count outputs, target to)
{
    const count vectors = outputs % (2 * LANES) ? 1 : 2, size = fitting(width, step);
    for (count j = 0; j < outputs; j += vectors * LANES)
        for (count done = 0; done < width; done += size) {
            /* the last ones may be computed twice, to the same bits */
            const count first = least(done, width - size);
            window at = from;
            target into = to;
            at.begin += first * step;
            into.sums += first * to.step + j;
            if (to.values)
                into.values += first * to.values_step + j;
            else
                into.biases += j;
            some(size, step, vectors, at, weights + j, outputs, into);
        }
}

static count size_of(const convolution *layer) { return layer->out_height * layer->out_width * layer->outputs; }

/* Numbers of a row of `slopes`, and where the first of them is that is no border. */
static count border(const convolution *layer) { return layer->kernel / layer->stride; }
static count slopes_row(const convolution *layer) { return (layer->out_width + 2 * border(layer)) * layer->outputs; }
static real *inner_slopes(const convolution *layer)
{
    return layer->slopes + border(layer) * (slopes_row(layer) + layer->outputs);
}

/* The windows that begin at number `start` of an image. */
static window windows_at(const convolution *layer, const real *image, count start)
{
    const count row = layer->width * layer->depth;
    return (window){image + start, layer->groups, layer->height * row, layer->kernel, row, layer->kernel * layer->depth};
}

/* Outputs of a layer for one image. */
static void forward(const convolution *layer, const real *image, real *values)
{
    const count down = layer->stride * layer->width * layer->depth, across = layer->stride * layer->depth;
    target to = {values, layer->outputs, layer->biases, NULL, 0};
    for (count y = 0; y < layer->out_height; y++, to.sums += layer->out_width * layer->outputs)
        line(layer->out_width, across, windows_at(layer, image, y * down), layer->weights, layer->outputs, to);
}

/* Slopes of `below`, whose values are the images of `layer`, from those of `layer`. */
static void backward(const convolution *layer, const convolution *below, const real *values)
{
    const count stride = layer->stride, taps = border(layer), depth = layer->depth, row = slopes_row(layer);
    for (count y = 0; y < layer->height; y++)
        for (count x = 0; x < stride; x++) {
            /* each output was computed from every stride-th number of a line: those on this one are at
             * y / stride, y / stride - 1, .. in the outputs */
            const real *last = inner_slopes(layer) + y / stride * row - (taps - 1) * layer->outputs;
            const window from = {last, 1, 0, taps, -row, taps * layer->outputs};
            const real *weights = layer->back + (y % stride * stride + x) * taps * taps * layer->outputs * depth;
            const target to = {
                inner_slopes(below) + y * slopes_row(below) + x * depth, stride * depth, NULL,
                values + (y * layer->width + x) * depth, stride * depth};
            line((layer->width - x + stride - 1) / stride, layer->outputs, from, weights, depth, to);
        }
}

/* Add to the gradient of `RUN` lines of the weights, for `vectors` vectors of outputs; a constant. */
static inline __attribute__((always_inline)) void add_products(
    count vectors, const convolution *layer, const real *image, const real *slopes, real *gradient)
{
    const count down = layer->stride * layer->width * layer->depth, across = layer->stride * layer->depth;
    vector sums[RUN][2];
    for (count r = 0; r < RUN; r++)
        sums[r][0] = sums[r][1] = (vector){0};
    for (count y = 0; y < layer->out_height; y++, image += down, slopes += slopes_row(layer)) {
        const real *at = image, *slope = slopes;
        for (count x = 0; x < layer->out_width; x++, at += across, slope += layer->outputs)
            for (count v = 0; v < vectors; v++) {
                const vector factor = *(const vector *)(slope + v * LANES);
                for (count r = 0; r < RUN; r++)
                    sums[r][v] += at[r] * factor;
            }
    }
    for (count r = 0; r < RUN; r++)
        for (count v = 0; v < vectors; v++)
            *(vector *)(gradient + r * layer->outputs + v * LANES) += sums[r][v];
}

/* Add to the gradients of weights and biases, from one image and its slopes. */
static void add_gradients(const convolution *layer, const real *image)
{
    const count outputs = layer->outputs, vectors = outputs % (2 * LANES) ? 1 : 2;
    const window all = windows_at(layer, image, 0);
    real *slopes = inner_slopes(layer), *gradient = layer->weights_gradient;
    for (count g = 0; g < all.groups; g++)
        for (count s = 0; s < all.segments; s++)
            for (count r = 0; r < all.run; r += RUN, gradient += RUN * outputs)
                for (count j = 0; j < outputs; j += vectors * LANES) {
                    const real *at = image + g * all.group_step + s * all.segment_step + r;
                    if (vectors == 2)
                        add_products(2, layer, at, slopes + j, gradient + j);
                    else
                        add_products(1, layer, at, slopes + j, gradient + j);
                }
    for (count y = 0; y < layer->out_height; y++, slopes += slopes_row(layer))
        for (count x = 0; x < layer->out_width; x++)
            for (count j = 0; j < outputs; j++)
                layer->biases_gradient[j] += slopes[x * outputs + j];
}

static const real *as_numbers(const convolution *layer, const uint8_t *bytes, real *image)
{
    const count size = layer->groups * layer->height * layer->width * layer->depth;
    for (count k = 0; k < size; k++)
        image[k] = bytes[k];
    return image;
}

static count image_size(const convolution *layer) { return layer->groups * layer->height * layer->width * layer->depth; }

/* Features [rows, outputs, out_height, out_width] of images of bytes; `image` holds one of them. */
void convolve(const convolution *layers, count num_layers, const uint8_t *bytes, count rows, real *image, real *features)
{
    const convolution *last = layers + num_layers - 1;
    const count positions = last->out_height * last->out_width;
    for (count row = 0; row < rows; row++, bytes += image_size(layers), features += size_of(last)) {
        const real *values = as_numbers(layers, bytes, image);
        for (const convolution *each = layers; each <= last; each++) {
            real *next = each->values + row * each->values_row;
            forward(each, values, next);
            values = next;
        }
        for (count j = 0; j < last->outputs; j++)
            for (count p = 0; p < positions; p++)
                features[j * positions + p] = values[p * last->outputs + j];
    }
}

/* Add the gradients of weights and biases, from those of the features; `values` are of all rows. */
void add_convolution_gradients(const convolution *layers, count num_layers, const uint8_t *bytes, count rows, real *image,
                               const real *features)
{
    const convolution *last = layers + num_layers - 1;
    for (count row = 0; row < rows; row++, bytes += image_size(layers), features += size_of(last)) {
        const real *values = last->values + row * last->values_row;
        for (count y = 0, p = 0; y < last->out_height; y++)
            for (count x = 0; x < last->out_width; x++, p++)
                for (count j = 0; j < last->outputs; j++) {
                    const real slope = features[j * last->out_height * last->out_width + p];
                    const int dropped = values[p * last->outputs + j] <= 0;
                    inner_slopes(last)[y * slopes_row(last) + x * last->outputs + j] = dropped ? 0 : slope;
                }
        for (const convolution *each = last; each > layers; each--) {
            const convolution *below = each - 1;
            const real *images = below->values + row * below->values_row;
            add_gradients(each, images);
            backward(each, below, images);
        }
        add_gradients(layers, as_numbers(layers, bytes, image));
    }
}
