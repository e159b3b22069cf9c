"""Every parameter: its type, bounds, one sentence and unit. Values are in params.yaml; few have a default.

`load("pretrain")` reads one section. A missing or unknown key is an error that names it and its near matches.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.config.options import (
    STRICT,
    Autoencoder,
    Clipped,
    Clustering,  # noqa: F401  # of vision.autoencoder; named by callers alone
    Clusters,
    Count,
    CountOrZero,
    Experts,
    Fraction,
    Head,
    History,
    NotNegative,
    Part,
    Positive,
    Scaling,
)
from pipeline.yaml_text import parse_yaml

PARAMS = Path("params.yaml")
AUTOENCODER = "autoencoder"  # vision.encoder, where it is learned from demonstrations; also its folder's name

Imitate = Literal["all", "score", "none"]  # every own episode (published), each by its score, or none
Teacher = Literal["label", "off"]  # whether experts say what they would do in the states that are collected
Observe = Literal["state", "both", "pictures"]


@dataclass(frozen=True, config=STRICT)
class Tasks:
    """Which tasks the run is about. Names come from the catalogue (`eft tasks`) and from `folder`."""

    train: tuple[str, ...]  # tasks trained together
    held_out: tuple[str, ...]  # tasks never trained on, adapted to one by one
    pairs: tuple[tuple[str, str], ...]  # pairs of training tasks with the same body and start: the instruction test
    weights: dict[str, NotNegative]  # how often a task is drawn, others 1; {} = episodes alike (published)
    folder: str  # folder of your own task files (*.yaml), or one such file

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.train + self.held_out if (self.train + self.held_out).count(name) > 1})
        if twice:
            raise ValueError(f"these tasks are listed twice in tasks.train and tasks.held_out: {', '.join(twice)}")
        for pair in self.pairs:
            for name in pair:
                if name not in self.train:
                    raise ValueError(f"tasks.pairs names {name!r}, which is not in tasks.train")
        paired = [name for pair in self.pairs for name in pair]
        if len(set(paired)) < len(paired):
            raise ValueError("a task is named twice in tasks.pairs; each may belong to one pair")
        for name in self.weights:
            if name not in self.train:
                raise ValueError(
                    f"tasks.weights names {name!r}, which is not in tasks.train.{near(name, list(self.train))}"
                )
        if self.weights and not any(self.weights.get(name, 1) for name in self.train):
            raise ValueError("tasks.weights sets every training task to 0: nothing would be drawn")


@dataclass(frozen=True, config=STRICT)
class Teach:
    """Which tasks get a teacher before demonstrations are made."""

    enabled: bool  # every task with a recipe in pipeline/demonstrate/teachers.yaml; else none
    shipped: bool  # take the teachers that come with Eft where there are such; else train every one
    workers: CountOrZero  # teachers trained at once; 0 = one per CPU core


@dataclass(frozen=True, config=STRICT)
class Demos:
    """How demonstrations are made."""

    episodes: Count  # demonstrations kept per training task
    held_out_episodes: CountOrZero  # demonstrations kept per held-out task
    max_attempts: Count  # attempts per kept demonstration before the task is given up
    action_noise: NotNegative  # std of noise added to executed actions; what the expert intended is recorded beside
    missing: Literal["stop", "go_on"]  # a task nobody demonstrates well enough: an error, or it learns online alone
    workers: CountOrZero  # processes collecting at once; 0 = one per CPU core


@dataclass(frozen=True, config=STRICT)
class Language:
    """The frozen text encoder."""

    encoder: str  # a Hub id, a folder, or `hashed-ngrams-<width>` (no download, for tests)
    phrasings: Count  # phrasings of each instruction used in training, the canonical one first; never the last one
    head: Head | None = None  # what stands between it and the world model; null = nothing, as published


@dataclass(frozen=True, config=STRICT)
class Vision:
    """Images as observations. With `observe: state` nothing is drawn and no encoder is loaded."""

    observe: Observe  # the state alone, vectors of images beside it, or in its place
    encoder: str  # the frozen image model: a Hub id, with @<commit> for a certain one, a folder, or `autoencoder`
    size: Annotated[int, Field(ge=16, le=1024)]  # pixels of an image's side
    batch_size: Count  # images encoded at once
    autoencoder: Autoencoder | None = None  # how `encoder: autoencoder` is learned; null with any other

    def __post_init__(self) -> None:
        if (Path(self.encoder).name == AUTOENCODER) != (self.autoencoder is not None):
            raise ValueError(
                f"vision.encoder is {self.encoder}: `autoencoder` goes with the section vision.autoencoder, and any "
                "other encoder with null there"
            )
        if self.autoencoder is not None and (self.size < 16 or self.size & (self.size - 1)):
            raise ValueError(
                f"vision.size is {self.size}: the autoencoder takes 16, 32, 64, 128, ... pixels (published: 64)"
            )


@dataclass(frozen=True, config=STRICT)
class Model:
    """Sizes of the world model."""

    obs_dim: Count  # observations are zero-padded to this width
    action_dim: Count  # actions are zero-padded to this width
    task_dim: Count  # width of the text encoder's vectors
    latent_dim: Count  # Z, a multiple of simnorm_dim
    enc_dim: Count  # hidden width of the encoder
    num_enc_layers: Count  # encoder layers, hidden ones and the last together
    mlp_dim: Count  # hidden width of dynamics, reward, policy and Q
    num_q: Annotated[int, Field(ge=2)]  # Q members
    num_bins: Annotated[int, Field(ge=3)]  # bins of a two-hot scalar
    bin_min: float  # lowest bin, symlog units
    bin_max: float  # highest bin, symlog units
    simnorm_dim: Count  # group width of SimNorm
    log_std_min: float  # of the policy
    log_std_max: float  # of the policy
    termination: bool  # predict how likely a step ends the episode for good, and count what comes later by that
    history: History | None = None  # dynamics that see past steps; null = off, the MLP that sees the present alone
    experts: Experts | None = None  # routed experts in these networks; null = off
    clusters: Clusters | None = None  # networks per cluster of tasks with like gradients; null = one for all

    def __post_init__(self) -> None:
        if self.latent_dim % self.simnorm_dim:
            raise ValueError(
                f"model.latent_dim {self.latent_dim} is not a multiple of model.simnorm_dim {self.simnorm_dim}"
            )
        both = set(self.clusters.parts if self.clusters else ()) & set(self.experts.parts if self.experts else ())
        if both:
            raise ValueError(
                f"model.clusters.parts and model.experts.parts both name {', '.join(sorted(both))}: a network is "
                "copied per cluster or has experts, not both"
            )
        if self.bin_min >= self.bin_max or self.log_std_min >= self.log_std_max:
            raise ValueError("model.bin_min must be below bin_max, and log_std_min below log_std_max")
        if self.experts is not None and self.mlp_dim % 8:
            raise ValueError(
                f"model.mlp_dim {self.mlp_dim} must be a multiple of 8 for model.experts: grouped products"
            )
        if self.history and self.experts and "dynamics" in self.experts.parts and self.history.dim % 8:
            raise ValueError(
                f"model.history.dim {self.history.dim} must be a multiple of 8 for experts in the dynamics"
            )


@dataclass(frozen=True, config=STRICT)
class Planner:
    """Model-predictive path integral control in latent space."""

    horizon: Count  # T, steps looked ahead; also the length of a training slice
    iterations: Count  # refinements of the plan
    num_samples: Count  # action sequences per iteration, the policy's included
    num_policy_samples: Count  # of them rolled out by the policy
    num_elites: Count  # best sequences kept per iteration
    min_std: Positive  # bounds of the sampling std
    max_std: Positive  # the upper one, with which free plans begin
    temperature: Positive  # of the elites' weights
    execute: Literal["elite", "mean"] = "elite"  # without exploration: one drawn (published), or the mean

    def __post_init__(self) -> None:
        if self.num_policy_samples >= self.num_samples:
            raise ValueError("planner.num_policy_samples must be below planner.num_samples: the rest is searched")
        if self.num_elites > self.num_samples:
            raise ValueError("planner.num_elites exceeds planner.num_samples")
        if self.min_std > self.max_std:
            raise ValueError("planner.min_std exceeds planner.max_std")


@dataclass(frozen=True, config=STRICT)
class Learning:
    """Losses and optimisers, the same in every phase."""

    lr: Positive  # Adam step size
    encoder_lr_scale: Positive  # the encoder's lr is lr x this
    grad_clip_norm: Positive  # largest gradient norm, model and policy each
    tau: Fraction  # target Q moves this fraction towards the online Q after each update
    rho: Fraction  # weight ratio of successive steps in a slice
    consistency_coef: NotNegative  # of predicted against encoded latents
    reward_coef: NotNegative  # of the cross-entropy of rewards
    value_coef: NotNegative  # of the cross-entropy of Q
    bc_coef: NotNegative  # behaviour cloning in the model's loss, in pretraining
    online_bc_coef: NotNegative  # the same online, where it keeps the latents fit for the policy; published: 0
    prior_coef: NotNegative  # behaviour cloning in the online policy loss
    entropy_coef: NotNegative  # of the policy's entropy, wherever it learns
    termination_coef: NotNegative  # of the cross-entropy of terminations, where model.termination is on
    normalize_obs: bool  # centre and scale observations by each body's mean and std over the demonstrations
    discount_min: Fraction  # bounds of the discount derived from the episode length
    discount_max: Fraction  # the upper one
    value_target: Literal["td", "returns"] = "td"  # of Q: one reward and target Q (published), or returns of episodes
    return_lambda: Fraction = 0.98  # returns: weight of what follows against Q of the next state
    relabel_every: Count = 250  # returns: updates after which those of all episodes are computed anew
    clipped: Clipped | None = None  # the online policy learns by a clipped ratio; null = by the value of its actions
    weighting: Literal["even", "harmony"] = "even"  # of the tasks in the model's loss: as drawn, or by learned scales
    weighting_lr_scale: Positive = 10.0  # harmony: the scales' lr is lr x this
    task_id_coef: NotNegative = 0.0  # of predicting the task from what the dynamics predict; 0 = off, no parameters


@dataclass(frozen=True, config=STRICT)
class Runtime:
    """Device and processes."""

    device: Literal["auto", "cpu", "cuda"]  # auto = CUDA where there is one
    threads: CountOrZero  # torch CPU threads; 0 = one per core
    matmul: Literal["auto", "torch", "onednn"]  # library of float32 products on a CPU; auto = by the processor, and ...
    # ... on a GPU TF32 (published), which `torch` turns off
    plan_products: Literal[
        "auto", "float32", "bfloat16"
    ]  # of planning: bfloat16 is faster, and values differ by 1 to ...
    # ... 2 %; auto = bfloat16 on a GPU
    env_workers: CountOrZero  # processes that step environments; 0 = in the main process
    precision: Literal["fp32", "bf16"]  # of the products in an update; weights and optimisers stay float32
    accumulate: Count  # pieces a batch is computed in for one update: the same update in less memory
    keep_saves: Count  # resumable saves kept; an older one goes once a newer one was read back whole
    stop_seconds: CountOrZero  # a SIGTERM ends the run this many seconds later, saved or not; 0 = it takes its time
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...]  # who else gets the metrics
    replay: Literal["memory", "device", "disk"]  # where transitions are kept: the device's own memory saves copies, ...
    # ... files (in .resume/, mapped into memory) may be larger than memory
    env_timeout: Positive = 60.0  # seconds a step of an environment may take, a reset ten times as long; after that ...
    # ... its process is ended and started again
    graphs: Literal["auto", "off"] = "auto"  # whole plans and updates as CUDA graphs; auto = on a GPU, where possible


@dataclass(frozen=True, config=STRICT)
class Pretrain:
    """Learning from demonstrations alone."""

    updates: CountOrZero  # of the whole phase; 0 leaves it out
    batch_size: Count  # slices per update, over all processes
    warmup_updates: CountOrZero  # linear warm-up of the learning rates
    log_every: Count  # updates between log lines
    save_every: Count  # updates between resumable saves
    eval_every: Count  # updates between evaluations of the policy
    eval_episodes: Count  # per task
    cooldown: Fraction = 0.0  # part of the updates, at their end, over which the learning rates fall linearly to 0


@dataclass(frozen=True, config=STRICT)
class Finetune:
    """Learning online on all training tasks at once."""

    env_steps: CountOrZero  # over all tasks together
    utd: Positive  # updates per environment step over all tasks together
    batch_size: Count  # slices per update, over all processes
    demo_fraction: Fraction  # part of each batch drawn from demonstrations
    imitate: Imitate  # which own episodes the policy imitates beside the demonstrations, where no expert labels them
    lr_scale: Positive  # the learning rates are those of `learning` x this
    envs_per_task: Count  # environments of each task stepping together
    warmup_updates: CountOrZero  # linear warm-up of the learning rates, whose optimisers start anew
    seeding_episodes: Count  # episodes per environment played by the policy alone before anything is trained
    constraint: Literal["evidence", "schedule", "policy"]  # how far plans may leave the policy: by measured scores, ...
    # ... per task; by the published schedule, for all tasks alike; or `policy`: own episodes are not planned at all
    evidence_memory: Annotated[int, Field(ge=2)]  # evidence: episodes of a task after which old ones have faded
    constraint_steps: CountOrZero  # schedule: env_steps during which the plan starts fully from the policy ...
    constraint_decay: CountOrZero  # schedule: ... and env_steps over which that weight then falls to 0
    replay_capacity: Count  # transitions kept
    log_every: Count  # env_steps between log lines
    save_every: Count  # env_steps between resumable saves
    eval_every: Count  # env_steps between evaluations of the policy
    eval_episodes: Count  # per task
    cooldown: Fraction = 0.0  # part of the env_steps, at their end, over which the learning rates fall linearly to 0
    scaling: Scaling | None = None  # dynamic parameter scaling; null = off
    imitated: Literal["executed", "intended"] = "executed"  # of own actions: as they were (published), or without noise
    demos_in_replay: bool = False  # own episodes begin with all demonstrations, which then fade (published)
    control: bool = False  # as many updates, on demonstrations alone: what own episodes are worth is the difference
    teacher: Teacher = "off"  # label: experts say what they would do in every collected state, and that is imitated ...
    # ... with weight 1, in tasks that have one; `imitate` is for the others
    stagger: bool = False  # first episodes are cut off after random steps and count for nothing but the replay, so ...
    # ... that many environments do not all begin their next ones at the same step

    def __post_init__(self) -> None:
        demos = self.batch_size * self.demo_fraction
        if abs(demos - round(demos)) > 1e-6:
            raise ValueError(
                f"batch_size {self.batch_size} x demo_fraction {self.demo_fraction} is {demos:g} slices, "
                "no whole number: change one of them"
            )


@dataclass(frozen=True, config=STRICT)
class Evaluate:
    """Scores that are reported."""

    episodes: Annotated[int, Field(ge=2)]  # per task and mode
    processes: Count  # that share the episodes on a CPU; plans draw other noise in another number of them
    phrasing: Literal["canonical", "unseen"]  # what the evaluate stage tells it; unseen: the one training never draws
    confidence: Annotated[float, Field(gt=0, lt=1)]  # of the bootstrap intervals
    bootstrap_samples: Count  # drawn for each interval
    open_loop_steps: tuple[Count, ...]  # of each plan, executed without looking again; one score each, [] for none
    open_loop_horizon: Count  # steps those plans look ahead
    open_loop_episodes: Annotated[int, Field(ge=2)]  # per task and number of steps
    video_size: CountOrZero  # pixels of a video's side; 0 = no videos
    video_every: Count  # agent steps per frame
    video_fps: Count  # frames per second of the mp4
    words_episodes: CountOrZero = 0  # per sentence of a kind that is never trained on, policy alone; 0 = none is told

    def __post_init__(self) -> None:
        if any(steps > self.open_loop_horizon for steps in self.open_loop_steps):
            raise ValueError("evaluate.open_loop_steps exceed evaluate.open_loop_horizon: there is no plan that far")


@dataclass(frozen=True, config=STRICT)
class Adapt:
    """Few-shot adaptation by low-rank adapters: first on demonstrations alone, then online."""

    parts: tuple[Part, ...]  # what the adapter may change
    rank: Count  # of the low-rank change of each linear layer
    alpha: Positive  # the change is scaled by alpha / rank
    lr: Positive  # Adam step size of the adapter
    stop_score: Fraction  # a phase ends once the evaluations during it reach this score; the final one is another
    patience: Count  # ... or once so many of them in a row brought no new best, whose weights are kept
    pretrain: Pretrain  # learning from the task's demonstrations; updates 0 leaves it out
    finetune: Finetune  # then learning online; env_steps 0 leaves it out

    def __post_init__(self) -> None:
        if self.finetune.scaling is not None:
            raise ValueError("adapt.finetune.scaling must be null: what learns there is an adapter already")
        if self.finetune.control:
            raise ValueError("adapt.finetune.control must be false: set its env_steps to 0 instead")
        if self.pretrain.updates and self.finetune.warmup_updates:
            raise ValueError(
                "adapt.finetune.warmup_updates must be 0 while adapt.pretrain.updates is not: the optimisers go on"
            )


@dataclass(frozen=True, config=STRICT)
class Publish:
    """The releases on the Hugging Face Hub."""

    repo_id: str | None  # `owner/name` of the model; null makes the release folder and pushes nothing
    demos_repo_id: str | None  # `owner/name` of the demonstrations' data set; null likewise
    private: bool  # new repos are private; one that exists stays as it is
    tag: str | None  # version tag put on the commits
    lerobot_episodes: CountOrZero = 0  # of each task that the data set also holds in LeRobot's form (v3); 0 = none
    lerobot_video_size: CountOrZero = 0  # pixels of a side of their videos; 0 = no videos


SECTIONS: dict[str, type] = {
    "tasks": Tasks,
    "teach": Teach,
    "demos": Demos,
    "language": Language,
    "vision": Vision,
    "model": Model,
    "planner": Planner,
    "learning": Learning,
    "runtime": Runtime,
    "pretrain": Pretrain,
    "finetune": Finetune,
    "evaluate": Evaluate,
    "adapt": Adapt,
    "publish": Publish,
}

Section = TypeVar("Section")


def load(section: type[Section], path: str | Path = PARAMS) -> Section:
    """Read one section of params.yaml.

    Args:
        section: the dataclass of the section, e.g. `config.Pretrain`.
        path: the parameter file.

    Raises:
        ValueError: the file or a key is missing, unknown, of the wrong type or out of bounds; every one is named.
    """
    name = next(key for key, value in SECTIONS.items() if value is section)
    params = read_params(path)
    if name not in params:
        raise ValueError(f"{path}: the section `{name}` is missing. It holds: {', '.join(_field_names(section))}.")
    return parse(section, params[name], f"{path}: {name}")


def load_seed(path: str | Path = PARAMS) -> int:
    """Read the one seed that every stage derives its random numbers from."""
    seed = read_params(path).get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"{path}: `seed` must be a whole number of at least 0, not {seed!r}.")
    return seed


def read_params(path: str | Path = PARAMS) -> dict[str, Any]:
    """Read a parameter file as plain Python values."""
    path = Path(path)
    try:
        params = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist. Run from the folder that holds it, the root of the project."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(params, dict):
        raise ValueError(f"{path} must hold named sections: {', '.join(SECTIONS)}.")
    for key in params:
        if key not in SECTIONS and key != "seed":
            raise ValueError(f"{path}: unknown section `{key}`.{near(str(key), [*SECTIONS, 'seed'])}")
    return params


def parse(section: type[Section], values: Any, where: str) -> Section:
    """Turn plain values into the section's dataclass; `where` names the file and section in errors."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected named values ({', '.join(_field_names(section))}), not {values!r}.")
    try:
        return TypeAdapter(section).validate_python(values)
    except ValidationError as error:
        problems = [_describe(section, dict(problem)) for problem in error.errors()]
    raise ValueError("\n".join(f"{where}: {problem}" for problem in problems))


def near(name: str, known: list[str]) -> str:
    """Return ` Did you mean …?` for the names in `known` that resemble `name`, or nothing."""
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(f'`{match}`' for match in matches)}?" if matches else ""


def is_mapping(key: str) -> bool:
    """Whether a parameter, e.g. `tasks.weights`, maps names of the user's choice to values, and is no section."""
    return get_origin(_kind(key)) is dict


def is_optional(key: str) -> bool:
    """Whether a parameter, e.g. `model.experts`, is a section that may be null."""
    return type(None) in get_args(_kind(key)) and _section(_kind(key)) is not None


def _kind(key: str) -> Any:
    """The type of a parameter, `model.experts.num` say; None for one that is unknown."""
    name, *parts = key.split(".")
    kind: Any = SECTIONS.get(name)
    for part in parts:
        section = _section(kind)
        kind = get_type_hints(section).get(part) if section else None
    return kind


def _describe(section: type, problem: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    for part in problem["loc"][:-1]:
        section = _section(get_type_hints(section).get(part)) or section if isinstance(part, str) else section
    if problem["type"] == "missing":
        return f"`{key}` is missing."
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"`{key}` is not a parameter.{near(str(problem['loc'][-1]), _field_names(section))}"
    if not key:
        return str(problem["msg"]).removeprefix("Value error, ")
    return f"`{key}` is {problem['input']!r}: {problem['msg']}."


def _section(kind: Any) -> type | None:
    """The dataclass of a section, also of one that may be null; None for any other kind of parameter."""
    return next((part for part in (kind, *get_args(kind)) if dataclasses.is_dataclass(part)), None)  # pyright: ignore


def _field_names(section: type) -> list[str]:
    return [field.name for field in dataclasses.fields(section)]
