"""Sections that may be null in params.yaml: parts of other systems, and what a run does without unless it is asked for.

Inside a section nothing has a default but a further section that may be null.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Part = Literal["encoder", "dynamics", "reward", "policy", "q"]  # of the world model
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class Clustering:
    """Tasks share networks during a warm-up; then those with like gradients do, in copies of their own."""

    num: Count | Literal["auto"]  # clusters; auto = as many, up to max_num, as give the best mean silhouette
    max_num: Annotated[int, Field(ge=2)]  # most clusters that `auto` tries
    warmup_updates: Count  # updates before the tasks are clustered (published: about 5,000)
    batches: Count  # of one task, as large as those learned from, over which its gradient is averaged
    points: Count  # of the warm-up, evenly spaced and its end among them, over which similarities are averaged

    def __post_init__(self) -> None:
        if self.points > self.warmup_updates:
            raise ValueError(
                f"clusters.points is {self.points}, more than its warm-up has updates, {self.warmup_updates}"
            )


@dataclass(frozen=True, config=STRICT)
class Head:
    """A linear head on the text encoder, trained on many sentences per task: which task of the body is meant."""

    dim: Annotated[int, Field(ge=2)]  # width of the space in which sentences are compared
    pieces: Annotated[int, Field(ge=8, le=4096)]  # places that pieces of three letters and words are hashed into
    typos: CountOrZero  # further copies of each sentence, with random typing errors
    epochs: Count  # over all sentences; it is trained twice, first without one kind of them, to fit its probabilities
    batch_size: Count  # sentences
    lr: Positive  # Adam step size, falling to 0
    dropout: Annotated[float, Field(ge=0, lt=1)]  # of the values that it reads


@dataclass(frozen=True, config=STRICT)
class Autoencoder:
    """A categorical autoencoder, trained on images of the training tasks' demonstrations; then it stays as it is."""

    groups: Count  # categorical variables of an image (published: 32)
    classes: Annotated[int, Field(ge=2)]  # of each; groups x classes values are observed (published: 32)
    width: Count  # channels of the first convolution; every further one halves the image and doubles them
    uniform_mix: Fraction  # of the uniform distribution in the probabilities
    kl_coef: NotNegative  # weight of the divergence from the uniform distribution, beside the reconstruction's 1
    frames: Count  # most frames of each task to train on
    updates: Count  # of its training
    batch_size: Count  # images per update
    lr: Positive  # Adam step size
    grad_clip_norm: Positive  # largest gradient norm
    clusters: Clustering | None = None  # an autoencoder per cluster of tasks (MoW); null = one for all


@dataclass(frozen=True, config=STRICT)
class Clusters(Clustering):
    """Networks of the world model per cluster of tasks; the warm-up is one of pretraining."""

    parts: tuple[Literal["encoder", "reward", "policy", "q"], ...]  # what is copied per cluster

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ValueError(f"model.clusters.parts is {list(self.parts)}: name one part or more, each once")


@dataclass(frozen=True, config=STRICT)
class History:
    """A causal Transformer over the past (latent, action) pairs of an episode, in place of the dynamics' MLP."""

    context: Annotated[int, Field(ge=1, le=1024)]  # past steps that a prediction sees beside the present one
    layers: Annotated[int, Field(ge=1, le=64)]  # of the Transformer
    heads: Count  # of attention
    dim: Count  # width of a step's token, a multiple of heads
    mlp_dim: Count  # hidden width of the feed-forward part, where model.experts puts no experts there
    backbone: Literal["dynamics", "shared"]  # who reads it: the next latent alone, or reward, policy and Q as well

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"model.history.dim {self.dim} is not a multiple of model.history.heads {self.heads}")


@dataclass(frozen=True, config=STRICT)
class Experts:
    """Routed experts in the place of the last hidden layer of some networks. Active width: (top_k + shared) x hidden.

    An expert is a SwiGLU feed-forward of three matrices, mlp_dim x hidden each; the dense layer it replaces is one of
    mlp_dim x mlp_dim. With 3 x (active width) = mlp_dim both multiply a row by as many weights.
    """

    parts: tuple[Literal["dynamics", "reward", "policy", "q"], ...]  # the networks that have experts
    num: Count  # routed experts of each such layer
    top_k: Count  # of them that compute a row, weighted by their probabilities among all
    hidden: Annotated[int, Field(multiple_of=8, ge=8)]  # hidden units of each routed expert and of the shared one
    shared: bool  # an expert more that computes every row
    router: Literal["latent", "task"]  # choose by each row's hidden state, or once per task by its embedding
    temperature: Positive  # of the softmax over all experts
    balance_coef: NotNegative  # of the loss that evens out how much the experts are used

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("model.experts.parts is empty: name some of the networks, or set model.experts to null")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"model.experts.parts names a network twice: {', '.join(self.parts)}")
        if self.top_k > self.num:
            raise ValueError(
                f"model.experts.top_k {self.top_k} exceeds model.experts.num {self.num}: there are not so many experts"
            )


@dataclass(frozen=True, config=STRICT)
class Clipped:
    """The policy's online step as a clipped ratio, with a bonus where model and experience disagree (M3PO)."""

    plan: bool  # episodes are collected by planning; false: by the policy alone
    every: Count  # env_steps, over all tasks, between policy phases; each learns from the episodes that ended since
    passes: Count  # over the steps of those episodes
    batch_size: Count  # steps per gradient step, over all processes
    ratio: Annotated[float, Field(gt=0, lt=1)]  # probability ratios are clipped to 1 - this and 1 + this
    gae_lambda: Fraction  # of the generalised advantages
    bonus: NotNegative  # weight of the disagreement in the advantage at first; falls linearly to 0 over the env_steps
    bonus_limit: NotNegative | None  # largest bonus, in units of the advantage's size (POME: 1); null = none


@dataclass(frozen=True, config=STRICT)
class Scaling:
    """Dynamic parameter scaling: solved tasks leave the collection, and capacity grows in stages for the others.

    A stage after the first adds a low-rank adapter to each matrix of some parts and freezes what these parts had
    learned. It begins once ceil(unsolved / adapters left) tasks were newly solved, or after so many updates. The run
    ends when every task is solved.
    """

    parts: tuple[Part, ...]  # what is frozen and adapted; all else goes on training (published: the backbone)
    adapters: Count  # stages after the first
    rank: Count  # r of each adapter
    alpha: Positive  # an adapter is scaled by alpha / rank
    target: Fraction  # a task is solved once an evaluation during training reaches this score ...
    targets: dict[str, Fraction]  # ... or, of these tasks, that one
    slack: Fraction  # a solved task comes back once an evaluation finds it this far below its target; 0 = below it
    first_stage_updates: Count  # most updates of stage 0
    stage_updates: Count  # most updates of each later one but the last

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("finetune.scaling.parts is empty: name some parts, or set finetune.scaling to null")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"finetune.scaling.parts names a part twice: {', '.join(self.parts)}")

    def target_of(self, task: str) -> float:
        """Return the score from which a task counts as solved."""
        return self.targets.get(task, self.target)
