"""Names that other PPO programs have for our flags, and what to do where there is no such flag.

Names are from Stable-Baselines3 and its zoo, CleanRL, RLlib, rsl_rl and Sample Factory, and from
what people call the same things elsewhere.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

from fabric_ppo.config_values import TRACKERS

_SAME = """
env_id: env env_name environment environment_name environment_id gym_id task task_name game
total_timesteps: timesteps n_timesteps num_timesteps total_steps max_steps max_timesteps
    stop_timesteps env_steps num_env_steps total_env_steps train_for_env_steps num_frames frames
env_kwargs: env_config env_args make_kwargs eval_env_kwargs environment_kwargs
critic_keys: privileged_keys privileged_obs privileged_observations critic_obs_keys critic_obs
frame_stack: env_framestack n_stack num_stack framestack
num_envs: n_envs num_environments num_env
num_steps: n_steps nsteps num_steps_per_env rollout rollout_length rollout_steps num_rollout_steps
    horizon horizon_length rollout_fragment_length unroll_length steps_per_rollout
update_epochs: n_epochs epochs num_epochs ppo_epochs ppo_epoch k_epochs num_sgd_iter
    num_learning_epochs noptepochs mini_epochs
learning_rate: lr learn_rate step_size lr_init initial_lr
gamma: discount discount_factor
gae_lambda: lam lambda lambda_ gae gae_coef gae_lam lmbda tau use_gae
clip_coef: clip_range cliprange clip_param clip_ratio clip_eps clip_epsilon eps_clip e_clip clip
    ppo_clip ppo_clip_ratio
clip_vloss: use_clipped_value_loss clip_value_loss clip_value
ent_coef: entropy_coef entropy_coeff ent_coeff entropy entropy_weight entropy_beta entropy_cost
    exploration_loss_coeff entropy_bonus
anneal_ent_coef: entropy_coeff_schedule
max_grad_norm: grad_clip clip_grad_norm max_gradient_norm grad_norm gradient_clip clip_grad
    grad_norm_clip
normalize_observations: norm_obs normalize_obs normalize_observation normalize_input obs_norm
    observation_filter empirical_normalization actor_obs_normalization
normalize_rewards: norm_reward norm_rew normalize_reward normalize_returns norm_returns reward_norm
anneal_lr: linear_lr lr_decay use_linear_lr_decay linear_schedule
adam_eps: adam_epsilon opt_eps optimizer_eps
activation_function: activation activation_fn nonlinearity fcnet_activation act_fn
layer_norm: layernorm use_layer_norm
shared_trunk: share_layers vf_share_layers actor_critic_share_weights share_weights shared_network
recurrent_size: lstm_hidden_size rnn_size lstm_cell_size rnn_hidden_size rnn_hidden_dim
sequence_length: recurrence max_seq_len seq_len seq_length bptt_length bptt_horizon
state_dependent_std: adaptive_stddev state_dependent_sigma
ortho_init: orthogonal_init use_orthogonal policy_initialization
seed: random_seed rng_seed
num_threads: n_threads threads torch_threads n_cpus num_cpus
torch_deterministic: deterministic cudnn_deterministic
compile: torch_compile use_compile jit
exp_name: experiment experiment_name run_name name tb_log_name
eval_episodes: n_eval_episodes num_eval_episodes evaluation_duration eval_num_episodes
test_episodes: n_test_episodes num_test_episodes
stop_at_return: stop_reward reward_threshold target_reward stop_return solved_reward
keep_checkpoints: num_to_keep keep_last max_checkpoints
callback: callbacks custom_callback callback_class
track_project: wandb_project wandb_project_name
track_group: wandb_group
track_tags: wandb_tags
env_wrapper: wrapper wrappers wrapper_class
capture_video: video save_video record_video record capture
"""
"""Flags of ours: other names of the same thing, in the same unit."""
EDIT = '"Change the algorithm" in docs/architecture.md'
"""Place that shows how what no flag has is changed."""
_NOTES = """
batch_size minibatch_size mini_batch_size sgd_minibatch_size
    --per-rank-batch-size has the rows of a minibatch on each rank: the same number for one process,
    for several the rows of all divided by their number
num_minibatches n_minibatches nminibatches num_mini_batches num_mini_batch num_minibatch
num_batches_per_epoch
    --per-rank-batch-size has the rows of a minibatch on each rank: num-steps x num-envs / number of
    minibatches
train_batch_size train_batch_size_per_learner rollout_batch_size timesteps_per_batch
    a rollout has --num-steps x --num-envs rows on each rank, set these two; a minibatch has
    --per-rank-batch-size
num_workers n_workers num_rollout_workers num_env_runners num_processes num_actors
    --num-envs N --env-backend async has N environments on each rank, each in a worker process
num_envs_per_worker num_envs_per_env_runner envs_per_worker
    --num-envs has all environments of a rank, those of all workers together
vec_env vec_env_type vec_env_class vector_env
    --env-backend takes sync, async (worker processes) or envpool
gym_packages import_module
    --env-id module:Env-v0 imports the module that registers the environment
obs_groups observation_groups num_privileged_obs num_critic_obs asymmetric central_value_config
    --critic-keys names parts of a Dict observation that the value network alone takes, --obs-keys
    those that the policy takes, too
max_episode_steps max_ep_len time_limit episode_length
    gymnasium.register(..., max_episode_steps=N) gives an environment a time limit;
    --test-step-limit is one for tests and evaluations alone
frame_skip env_frameskip frameskip action_repeat atari atari_wrapper wrap_atari
    --env-preset atari skips and stacks frames as usual; --env-wrapper takes functions of your own
clip_obs clip_reward clip_rewards reward_clip reward_scale reward_scaling obs_scale
obs_subtract_mean
    --normalize-observations and --normalize-rewards scale by running statistics; --env-wrapper
    takes a function of your own
normalize normalise vec_normalize vecnormalize normalize_kwargs
    --normalize-observations and --normalize-rewards switch each on by itself
normalize_advantage norm_adv standardize_advantages normalize_adv adv_norm advantage_norm
normalize_advantage_per_mini_batch
    --normalize-advantages is on; it does so once per update, not per minibatch
clip_range_vf cliprange_vf vf_clip_param vf_clip ppo_clip_value value_clip clip_value_coef
    --clip-vloss clips the value loss too, with the range of --clip-coef
vf_coeff value_coef value_coeff vf_loss_coeff value_loss_coef value_loss_coeff critic_coef
value_weight
    --vf-coef weighs half of the squared error: take twice the value of a program that weighs all of
    it, as Stable-Baselines3, RLlib, rsl_rl and Sample Factory do
lr_schedule learning_rate_schedule schedule lr_scheduler scheduler adaptive_lr
lr_schedule_kl_threshold warmup warmup_steps lr_warmup cosine_lr lr_end lr_min min_lr
    --anneal-lr lowers the learning rate linearly to zero and is on, --no-anneal-lr keeps it
    constant, --learning-rate cosine:1e-3:1e-5:warmup=0.1 is a schedule of another shape, and
    --no-anneal-lr --desired-kl X has it follow the KL divergence
kl_coeff kl_coef kl_target kl_loss_coeff use_kl_loss kl_penalty max_kl kl_threshold
    there is no KL penalty; --target-kl ends an update's epochs early, --desired-kl has the learning
    rate follow the KL divergence; another term of the loss is an edit, see EDIT
huber huber_loss use_huber use_huber_loss huber_delta value_loss value_loss_fn value_loss_type
vf_loss vf_loss_fn critic_loss loss loss_fn loss_type smooth_l1 mse dual_clip dual_clip_coef
clip_ratio_high clip_ratio_low clip_range_high clip_high clip_low symlog popart use_popart
aux_loss aux_coef auxiliary_loss l1_coef l2_coef l2_reg reg_coef z_loss spo trpo grpo
bc_coef imitation_coef rnd icm curiosity intrinsic_coef
    the loss is that of the PPO paper; another one, or another term, is an edit of
    fabric_ppo/ppo/loss.py, see EDIT
vtrace v_trace use_vtrace advantage_estimator estimator upgo td_lambda retrace
    advantages are GAE's; another estimator is an edit of fabric_ppo/ppo/advantages.py, see EDIT
dropout dropout_rate dropout_p drop_rate batch_norm batchnorm use_batch_norm spectral_norm
    layers that depend on chance or on other observations are refused, for the ratio of
    probabilities needs the same numbers in rollout and update; --layer-norm is there, and other
    networks are an edit, see EDIT
residual resnet skip_connections dense_connections init_scale init_gain weight_init
    networks have --hidden-sizes, --activation-function, --layer-norm and --ortho-init; others are
    an edit of fabric_ppo/agents/mlp.py, see EDIT
grad_clip_value clip_grad_value gradient_clip_value grad_clip_mode clip_by_value
gradient_clip_algorithm adaptive_grad_clip agc
    --max-grad-norm clips the gradient's norm; another clipping is an edit of the script's step, see
    EDIT
freeze freeze_encoder freeze_layers frozen frozen_layers freeze_backbone freeze_policy freeze_trunk
    weights are frozen in make_agent of fabric_ppo/agents/make.py, see EDIT
actor_lr critic_lr policy_lr value_lr vf_lr pi_lr lr_actor lr_critic learning_rate_actor
learning_rate_critic actor_learning_rate critic_learning_rate policy_learning_rate
value_learning_rate
    --learning-rate is that of policy and value function; rates of their own are an edit of
    make_optimizer, see EDIT
eps epsilon
    --clip-coef is the clipping range, --adam-eps Adam's epsilon
optim optimizer_class optimizer_type weight_decay adam_beta1 adam_beta2 adam_betas beta1 beta2 betas
momentum nesterov amsgrad adamw sgd rmsprop lion opt
    --optimizer takes adam, adamw, or a class such as torch.optim:RMSprop, and --optimizer-kwargs its
    settings, such as '{"weight_decay": 0.01}'
muon
    an optimizer that looks at the shapes of weights is an edit of make_optimizer, see EDIT
net_arch hidden_dim hidden_dims hidden_size hidden_layers hidden_layer_sizes hidden_units
fcnet_hiddens layers units mlp_units actor_hidden_dims critic_hidden_dims encoder_mlp_layers
decoder_mlp_layers num_hidden
    --hidden-sizes has the widths of the layers, as in --hidden-sizes 64 64, of policy and value
    network alike
policy_kwargs model_config network_kwargs
    its parts are flags: --hidden-sizes, --activation-function, --ortho-init, --shared-trunk,
    --log-std-init, --encoder
features_extractor share_features_extractor features_extractor_class features_extractor_kwargs
feature_extractor encoder_conv_architecture cnn
    --encoder takes nature, impala, small, flatten, or a class of your own, module:Class
algo algorithm policy policy_type agent
    the algorithm is PPO; networks follow from the observations, with --encoder for images and
    --recurrent for memory
use_lstm use_rnn lstm rnn gru rnn_type use_recurrent recurrent_policy enable_critic_lstm
use_attention
    --recurrent takes lstm or gru
rnn_num_layers n_lstm_layers rnn_layers
    --recurrent has one layer, of --recurrent-size
log_std std_init init_std init_noise_std initial_stddev action_std init_log_std
    --log-std-init takes the logarithm of the standard deviation: 0 for a deviation of 1
use_sde sde_sample_freq gsde
    there is no state-dependent exploration; --state-dependent-std has the network give the standard
    deviation
device use_cuda use_gpu gpu gpus gpu_id num_gpus n_gpus no_cuda num_gpus_per_learner
actor_worker_gpus
    --cuda trains on GPUs with train_torch.py and train_fabric_decoupled.py; train_fabric.py takes
    the device from fabric run --accelerator=cuda
devices num_nodes nnodes nproc_per_node node_rank main_address main_port master_addr master_port
standalone strategy accelerator precision distributed multi_gpu world_size num_learners fp16 bf16
amp mixed_precision
    processes, hosts and precision are the launcher's: python -m fabric_ppo train SCRIPT --devices N
    starts N processes; torchrun and fabric run take their own flags before the script's name
async_rl serial_mode async
    --overlap of train_fabric_decoupled.py collects a rollout while the trainers optimise
trackers wandb use_wandb with_wandb wandb_entity wandb_user logger loggers tracker mlflow trackio
use_tensorboard report_to
    --track takes TRACKERS, or a tracker of your own, module:Class
tensorboard_log log_folder log_path logdir log_root train_dir output_dir out_dir save_dir save_path
results_dir storage_path local_dir output
    --log-dir is the folder of all runs, --run-dir the folder of this run
eval_freq eval_interval evaluation_interval eval_frequency evaluation_freq evaluate_every test_freq
    --eval-every counts updates: steps of all environments / (num-steps x num-envs x ranks)
save_freq save_interval save_every save_frequency checkpoint_freq checkpoint_frequency
checkpoint_interval save_every_steps
    --checkpoint-every counts updates: steps of all environments / (num-steps x num-envs x ranks)
save_every_sec save_best_every_sec
    --checkpoint-every counts updates; its 0 is about one a minute
max_iterations num_iterations iterations n_iterations n_updates num_updates stop_iters max_iters
max_epochs
    --total-timesteps counts transitions: iterations x num-steps x num-envs x ranks
train_for_seconds max_time time_budget max_runtime
    --total-timesteps and --stop-at-return end a run; after a signal it can go on with --resume
load load_model load_path load_run load_checkpoint checkpoint checkpoint_path trained_agent
pretrained model_path restore model
    --init-from starts with the weights of another run; --run-dir DIR --resume goes on with a run
resume_from continue continue_training restart_behavior restart
    --run-dir DIR --resume goes on with a run
render render_mode headless no_render human play
    fabric-ppo evaluate RUN_DIR --render human shows a trained agent; --capture-video records
verbose progress progress_bar debug silent
    a live line is shown on a terminal anyway; --quiet prints warnings and errors only
log_interval log_every log_freq stats_window_size
    metrics are logged after every update, see --track
save_model save upload_model hf_entity push_to_hub
    the policy is always saved, in the run's folder, see --run-dir
hyperparams hyperparameters conf_file conf config_file config_path params yaml yaml_file cfg preset
    --config takes a YAML file of flags, or the name of a preset
optimize optimize_hyperparameters n_trials n_jobs sampler pruner study_name storage with_pbt
num_policies
    fabric-ppo sweep SPACE searches for hyperparameters; the best ones are a file for --config
"""
"""Other names, and below them what to do here, where a new name alone would mislead."""


_PYTHON_NOTES = """
device use_cuda use_gpu gpu gpus gpu_id num_gpus n_gpus num_gpus_per_learner
    train(TorchConfig(cuda=True)) trains on a GPU; several take processes, which
    python -m fabric_ppo train torch --devices N starts
"""
"""Other names, and below them what to do from Python, where that is something else than in a shell."""
_ARGUMENTS = """
run_dir: path model_path load_path folder dir directory file filename checkpoint checkpoint_path model
    name load_dir run zip_file
own_code: trust_remote_code allow_code custom_code unsafe
obs: observation observations x inputs
observation: obs observations x inputs
memory: state states lstm_state lstm_states hidden hidden_state rnn_state recurrent_state
state: states memory lstm_states hidden hidden_state rnn_state
episode_start: episode_starts mask masks dones done first
seed: rng generator random_state
to: format type
out: output output_file path file filename out_file save_path
"""
"""Arguments of functions: other names of the same thing, where a function has the first one."""
_ARGUMENT_NOTES = """
map_location cuda gpu
    load_agent(..., device="cuda") puts its networks there
env custom_objects print_system_info force_reset policy_class
    it needs none: an agent has its spaces and networks in its file
stochastic sample explore
    deterministic=False samples
action_mask action_masks mask masks
    the observation holds it: a part of a Dict observation, action_mask
"""
"""Arguments that functions do not have, and below them what to do here."""
_AGENT_NOTES = """
learn train fit
    train(Config(init_from=RUN_DIR)) trains it on
save save_policy
    it lies in the folder of its run already, as policy.safetensors
load load_policy from_pretrained
    load_agent(RUN_DIR) loads one
get_action get_actions select_action choose_action compute_single_action forward step
    act(obs) chooses actions
predict_values get_value critic value_function
    value(obs) estimates the return
policy network net model state_dict parameters eval to device actor_critic
    its module is a PyTorch module, as in agent.module.to(DEVICE)
env get_env set_env observation_space action_space
    it has no environment, but the spaces of one, as spec
initial_state get_initial_state reset
    new_memory() is the memory that an episode begins with
evaluate evaluate_policy test
    evaluate(agent) plays test episodes
"""
"""Attributes that an agent does not have, and below them what to do here."""
_RUN_NOTES = """
learn train fit resume continue_training
    train(Config(run_dir=RUN_DIR, resume=True)) goes on with it, and train(Config(init_from=RUN_DIR))
    begins another run with its weights
save save_policy save_model
    its files lie in run_dir already, policy.safetensors is the agent
load from_pretrained open
    load_run(RUN_DIR) opens one
predict act forward get_action select_action value
    its agent has that, as in run.agent.act(obs)
policy model network net module actor_critic state_dict parameters
    agent is the trained one, agent.module a PyTorch module
evaluate evaluate_policy test
    evaluate(run) plays test episodes
env get_env observation_space action_space
    it has no environment, but the spaces of one, as agent.spec
history logs log df results returns rewards losses scores
    metrics has what was logged, summary the results of the test
config args params hyperparams hyperparameters cfg
    flags has them
path dir folder logdir log_dir
    run_dir is its folder
plot report video export compare
    a command has that, as in python -m fabric_ppo plot RUN_DIR; --help lists them
"""
"""Attributes that a run does not have, and below them what to do here."""


TRAIN_ARGUMENTS = ("verbose", "callbacks", "trackers")
"""Arguments of `train`, which are no flags."""


def other_name(name: str, kinds: Mapping[str, Any]) -> tuple[str, str]:
    """Return what another program's name is here: the name of ours, or a note; both empty for neither.

    Args:
        name: such as `lr`; that of a switch may begin with `no_`, and ours then does, too.
        kinds: our names -> their types.
    """
    same, others = same_names(), notes()
    for other in (name, name.removeprefix("no_")):
        if other in same:
            is_switched_off = other != name and kinds.get(same[other]) is bool
            return f"no_{same[other]}" if is_switched_off else same[other], ""
        if other in others:
            return "", others[other]
    return "", ""


def python_hint(name: str, kinds: Mapping[str, Any]) -> str:
    """Return a hint for the error about an argument that a Config does not have.

    Args:
        name: of the argument.
        kinds: those that it has -> their types.
    """
    if name in TRAIN_ARGUMENTS:
        return f"it is an argument of train, as in train(Config(...), {name}=...)"
    if note := _noted(_PYTHON_NOTES).get(name.lower()):
        return note
    ours, note = other_name(name.lower(), kinds)
    if not ours and name.startswith("no_") and name[3:] in kinds:
        ours = name
    if ours:
        return f"here it is {_as_argument(ours, kinds)}"
    if note:
        # "--no-anneal-lr" is how a shell has it
        every = r"--([a-z][a-z-]*)"
        return re.sub(every, lambda found: _as_argument(found[1].replace("-", "_"), kinds, found[0]), note)
    nearest = nearest_name(name, kinds)
    return f"did you mean {nearest}?" if nearest else "python -m fabric_ppo train --help-all lists the flags"


def call_hint(name: str, own: Collection[str], kinds: Mapping[str, Any]) -> str:
    """Return a hint for the error about an argument that `train` or `evaluate` does not have.

    Args:
        name: of the argument.
        own: those that the function has.
        kinds: those that a Config has -> their types.
    """
    if nearest := nearest_name(name, own, cutoff=0.8):
        return f"did you mean {nearest}?"
    if name in kinds:
        return f"it is a flag, as in train(Config({name}=...))"
    hint = python_hint(name, kinds)
    return f"{hint} of Config, as in train(Config(...))" if hint.startswith("here it is") else hint


def argument_hint(name: str, own: Collection[str]) -> str:
    """Return a hint for the error about an argument that a function with the arguments `own` does not have."""
    for ours, others in _listed(_ARGUMENTS).items():
        if ours in own and name.lower() in others:
            return f"here it is {ours}"
    if note := _noted(_ARGUMENT_NOTES).get(name.lower()):
        return note
    if nearest := nearest_name(name, own):
        return f"did you mean {nearest}?"
    return f"the arguments are {', '.join(own)}"


def agent_hint(name: str, own: Collection[str]) -> str:
    """Return the end of the error about an attribute that an agent does not have; `own` are those that it has."""
    return _attribute_hint(name, own, _AGENT_NOTES)


def run_hint(name: str, own: Collection[str]) -> str:
    """Return the end of the error about an attribute that a run does not have; `own` are those that it has."""
    return _attribute_hint(name, own, _RUN_NOTES)


def _attribute_hint(name: str, own: Collection[str], notes_of: str) -> str:
    if name.startswith("_"):  # a library asks for it
        return ""
    if note := _noted(notes_of).get(name.lower()):
        return f"; {note}"
    nearest = nearest_name(name, own)
    return f"; did you mean {nearest}?" if nearest else ""


def nearest_name(word: str, known: Collection[str], cutoff: float = 0.7) -> str:
    """Return the name that a slip, or the beginning of one name, has most likely meant; else nothing.

    Args:
        word: a flag, such as `--no-anneal-l`, or the name of an argument.
        known: the names that there are, flags or arguments as `word` is.
        cutoff: likeness of the names from 0 to 1, dashes and `no-` left out, which are in many.
    """
    names: dict[str, list[str]] = {}
    for each in known:
        names.setdefault(_stem(each)[0], []).append(each)
    wanted, is_off = _stem(word)
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=cutoff)
    begun = [name for name in names if wanted and name.startswith(wanted)]
    close = close or (begun if len(begun) == 1 else [])
    return min(names[close[0]], key=lambda each: _stem(each)[1] != is_off) if close else ""


def _stem(name: str) -> tuple[str, bool]:
    """Return a name without dashes before it and without `no-`, and whether that was there."""
    plain = name.lstrip("-").lower().replace("_", "-")
    return plain.removeprefix("no-"), plain.startswith("no-")


def _as_argument(name: str, kinds: Mapping[str, Any], unknown: str = "") -> str:
    """Return a flag's name as an argument of a Config; of one that it does not have `unknown`."""
    if name.startswith("no_") and name[3:] in kinds:
        return f"{name[3:]}=False"
    return name if name in kinds else unknown


@functools.cache
def same_names() -> dict[str, str]:
    """Return other name -> field of ours."""
    return {name: ours for ours, names in _listed(_SAME).items() for name in names}


@functools.cache
def notes() -> dict[str, str]:
    """Return other name -> what to do here."""
    words = {"TRACKERS": ", ".join(TRACKERS), "EDIT": EDIT}
    return {name: re.sub("TRACKERS|EDIT", lambda found: words[found[0]], note) for name, note in _noted(_NOTES).items()}


@functools.cache
def _listed(text: str) -> dict[str, list[str]]:
    """Return name of ours -> other names."""
    found = re.findall(r"^(\w+):((?:.*\n(?: {4}.*\n)*))", text, re.MULTILINE)
    return {ours: names.split() for ours, names in found}


@functools.cache
def _noted(text: str) -> dict[str, str]:
    """Return other name -> the note below it."""
    found: dict[str, str] = {}
    for names, lines in re.findall(r"((?:^\w.*\n)+)((?:^ {4}.*\n)+)", text, re.MULTILINE):
        found |= dict.fromkeys(names.split(), " ".join(lines.split()))
    return found
