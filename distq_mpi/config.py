"""The configuration: every key with its meaning, its limits and its default.

Frozen dataclasses, one per section; a key's description is the text that `--help` prints. Nothing
heavy is imported here: every rank unpickles a `Config`, one rank alone reads and checks it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from distq_mpi.errors import ConfigError

FLOAT64_PAIRS = 1 << 22
LANES_PER_AGENT = 64
LANES_SHARDED = 8192
DEFAULT_GAP = 1e-3
DEFAULT_STEPS = 10_000_000
EXPONENTS = {"polynomial": 0.8, "sign_change": 0.6}

Value = bool | int | float | str
Probability = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Limit = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class EnvConfig:
    """What is learned on."""

    id: str = "FrozenLake8x8-v1"
    """Gymnasium id, built-in name, module:Law, or a model file (.npz, .h5, .hdf5)."""
    kwargs: dict[str, Value] = field(default_factory=dict)
    """Arguments of the environment: --env.kwargs.NAME VALUE."""
    max_episode_steps: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Time limit in steps; 0 = the environment's own."""
    bins: Count | list[Positive] = 0
    """Equal bins of each continuous dimension, observations then actions; 0 = none."""
    clip: Limit | list[Limit] = 0.0
    """Symmetric limits of each observed dimension, where the space has none or wider; 0 = none."""


@dataclass(frozen=True)
class LearnConfig:
    """How one transition is learned from."""

    rule: Literal["q_learning", "sarsa", "expected_sarsa", "double_q"] = "q_learning"
    """What a transition bootstraps from."""
    discount: Probability = 0.99
    """Gamma, the weight of the future."""
    step_size: Literal["rescaled_linear", "constant", "polynomial", "linear", "sign_change"] = (
        "rescaled_linear"
    )
    """By visits k of a pair: 1 / (1 + (1 - discount) k), alpha, k^-exponent, 1 / k; or by signs."""
    alpha: Annotated[float, Gt(0), Le(1)] = 0.1
    """Step size of constant."""
    exponent: Probability = 0.0
    """Of polynomial and sign_change; 0 = 0.8 and 0.6."""
    exploration: Literal["epsilon_greedy", "softmax"] = "epsilon_greedy"
    """Behaviour while learning."""
    epsilon: Probability = 0.3
    """Share of random actions (at the start)."""
    epsilon_final: Probability = 0.05
    """Share of random actions at the end."""
    epsilon_steps: Count = 0
    """Steps, summed over all lanes, in which epsilon reaches epsilon_final."""
    epsilon_schedule: Literal["constant", "linear", "exponential"] = "constant"
    """How epsilon goes there."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Of softmax, in units of reward: e^(q / temperature) (at the start)."""
    temperature_final: Annotated[float, Gt(0)] = 0.05
    """Temperature at the end."""
    temperature_steps: Count = 0
    """Steps, summed over all lanes, in which temperature reaches temperature_final."""
    temperature_schedule: Literal["constant", "linear", "exponential"] = "constant"
    """How temperature goes there."""
    exploring_starts: bool = False
    """Begin episodes in any state with any action, all equally likely."""
    initial: Literal["optimistic", "zeros", "random"] = "optimistic"
    """First values; optimistic: the environment's declared bound on the return, else 0."""
    dtype: Literal["auto", "float64", "float32"] = "auto"
    """Type of the table; auto: float64 up to 2^22 state-action pairs."""


@dataclass(frozen=True)
class ParallelConfig:
    """Who learns where, and how it comes together."""

    architecture: Literal["allreduce", "sharded", "server", "auto"] = "allreduce"
    """allreduce: a replica per rank; sharded: its own rows; server: servers and workers."""
    agents: Count = 0
    """Learners, the unit of fusion; 0 = one per rank (none in sharded); fixes the bits."""
    lanes: Count = 0
    """Environments in all; 0 = 64 per agent; in sharded 8192, or 64 stepped in Python."""
    reproducible: bool = True
    """The same bits on any number of ranks; sharded: false lets lanes run free, and faster."""
    servers: Positive = 1
    """server: ranks that own the table and do not learn, rank 0 first."""
    staleness: Literal["inf"] | Count = 0
    """server: pushes a worker may be ahead of the slowest one; inf = any number."""
    cache_rows: Count = 0
    """server: rows a worker keeps at most, pulled when it needs them; 0 = all of them."""
    rebalance: bool = True
    """sharded: move the borders of blocks to even out the steps of the ranks; bits stay."""
    steps_per_round: Literal["auto"] | Positive = "auto"
    """Steps of every lane between fusions."""
    kappa: Annotated[float, Gt(0)] = 1.0
    """Drift that steps_per_round = auto allows; 2 for slow networks."""
    fusion: Literal[
        "pooled", "count", "mean", "importance", "delta", "delta_capped", "median",
        "trimmed_mean", "max",
    ] = "pooled"  # fmt: skip
    """How the agents' tables become one."""
    trim: Count = 1
    """Values dropped at either end by trimmed_mean; it and median need 2 trim + 1 visitors."""
    force: bool = False
    """Allow a fusion that does not converge: max where it overestimates, delta beyond its limit."""
    memory_bytes: Count = 0
    """What one rank may use; 0 = all of its host's memory."""
    protect: Literal["off", "partner"] = "off"
    """A copy of every block on another rank: sharded (borders stay), server out of step."""
    hang_s: Annotated[float, Ge(0)] = 300.0
    """Seconds without a step after which a rank is given up, and its stack shown; 0 = never."""
    on_loss: Literal["shrink", "abort"] = "shrink"
    """When ranks are lost, under an MPI that survives it: shrink goes on with those left."""


@dataclass(frozen=True)
class StopConfig:
    """When to end; the first rule that holds ends the run.

    With no rule at all: policy_gap 1e-3 where the environment can be solved, else 1e7 steps.
    """

    steps: Positive | None = None
    """Steps, summed over all lanes."""
    rounds: Positive | None = None
    """Rounds."""
    episodes: Positive | None = None
    """Finished episodes."""
    wall_time_s: Annotated[float, Gt(0)] | None = None
    """Seconds since the start."""
    policy_gap: Annotated[float, Ge(0)] | None = None
    """(optimal_value - policy_value) / value range, exact, at most this."""
    policy_loss: Annotated[float, Ge(0)] | None = None
    """Largest exact loss over reachable states at most this."""
    policy_loss_bound: Annotated[float, Ge(0)] | None = None
    """Bound on the loss that needs no V* at most this; loose for sampled tables."""
    mean_return: float | None = None
    """Mean return of the last 100 or more episodes at least this."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is written to disk."""

    every_rounds: Count = 1000
    """Rounds between checkpoints; 0 = when asked and at the end."""
    keep: Positive = 3
    """Newest checkpoints kept."""


@dataclass(frozen=True)
class RunConfig:
    """The run itself."""

    dir: str = ""
    """Run directory; empty = runs/<env>-<NNNN>."""
    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    """Seed of every random number."""
    overwrite: bool = False
    """Replace the run in run.dir."""
    report_every_s: Annotated[float, Gt(0)] = 1.0
    """Seconds between reports."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How the result is judged."""

    episodes: Count = 100
    """Greedy episodes played at the end; 0 = none."""
    exact: bool = True
    """Compute exact values and bounds where affordable."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    __pydantic_config__ = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "use_attribute_docstrings": True,
    }

    env: EnvConfig = field(default_factory=EnvConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


SECTIONS: dict[str, type[Any]] = {
    "env": EnvConfig,
    "learn": LearnConfig,
    "parallel": ParallelConfig,
    "stop": StopConfig,
    "checkpoint": CheckpointConfig,
    "run": RunConfig,
    "evaluate": EvaluateConfig,
}


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Sections and keys without those that are off (None)."""
    return {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in asdict(config).items()
    }


def from_dict(sections: dict[str, dict[str, Any]]) -> Config:
    """The inverse of `to_dict`; keys left out take their defaults. Types are not checked here.

    Raises ConfigError for a section or key that does not exist.
    """
    known = {f"{name}.{key.name}" for name, kind in SECTIONS.items() for key in fields(kind)}
    unknown = [name for name in sections if name not in SECTIONS]
    unknown += [
        f"{name}.{key}"
        for name, values in sections.items()
        if name in SECTIONS
        for key in values
        if f"{name}.{key}" not in known
    ]
    if unknown:
        raise ConfigError("\n".join(f"{name}: unknown in this version" for name in unknown))
    return Config(**{name: SECTIONS[name](**values) for name, values in sections.items()})


def to_toml(config: Config) -> str:
    """The configuration as TOML that is valid input again."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))


OTHERWISE_REPRODUCIBLE = {
    "allreduce": "whose fast path is reproducible; sharded has another",
    "server": "where parallel.staleness decides whether it is",
}
"""Architectures in which `parallel.reproducible` has no say, and why."""


def check(config: Config) -> list[str]:
    """Mistakes between keys, each naming the key, the value and the limit. Local."""
    learn, parallel, mistakes = config.learn, config.parallel, []
    if learn.discount == 1 and learn.step_size == "rescaled_linear":
        mistakes.append(
            "learn.discount: 1 must be < 1 with learn.step_size rescaled_linear, which never falls "
            "at 1; take learn.step_size polynomial"
        )
    if learn.exponent and learn.exponent <= 0.5 and learn.step_size in EXPONENTS:
        mistakes.append(
            f"learn.exponent: {learn.exponent:g} must be > 0.5 and <= 1 with learn.step_size "
            f"{learn.step_size}, or the steps' squares have no finite sum; 0 stands for "
            f"{EXPONENTS[learn.step_size]:g}"
        )
    for key in ("epsilon", "temperature"):
        schedule = getattr(learn, f"{key}_schedule")
        if schedule != "constant" and getattr(learn, f"{key}_steps") == 0:
            mistakes.append(
                f"learn.{key}_steps: 0 must be >= 1 with learn.{key}_schedule {schedule}"
            )
    if learn.epsilon_schedule == "exponential" and not (learn.epsilon and learn.epsilon_final):
        mistakes.append(
            f"learn.epsilon {learn.epsilon} and learn.epsilon_final {learn.epsilon_final} must be "
            "> 0 with learn.epsilon_schedule exponential; take linear to reach 0"
        )
    if parallel.lanes and parallel.lanes < parallel.agents:
        mistakes.append(
            f"parallel.lanes: {parallel.lanes} must be >= parallel.agents {parallel.agents}; "
            "every agent needs one"
        )
    if parallel.architecture in OTHERWISE_REPRODUCIBLE and not parallel.reproducible:
        mistakes.append(
            "parallel.reproducible: false must be true with parallel.architecture "
            f"{parallel.architecture}, {OTHERWISE_REPRODUCIBLE[parallel.architecture]}"
        )
    plain = ParallelConfig()
    in_step = parallel.architecture == "server" and parallel.staleness == 0
    if parallel.protect != "off" and (parallel.architecture == "allreduce" or in_step):
        mistakes.append(
            f"parallel.protect: {parallel.protect} has no meaning where every rank has the whole "
            "table; it must be off"
        )
    if parallel.architecture != "server":
        mistakes += [
            f"parallel.{key}: {getattr(parallel, key)} has a meaning with parallel.architecture "
            f"server only; it must be {getattr(plain, key)}"
            for key in ("servers", "staleness", "cache_rows")
            if getattr(parallel, key) != getattr(plain, key)
        ]
    elif parallel.staleness == 0:
        if parallel.cache_rows:
            mistakes.append(
                f"parallel.cache_rows: {parallel.cache_rows} must be 0 with parallel.staleness 0, "
                "where every worker has all rows"
            )
    else:
        mistakes += [
            f"parallel.{key}: {getattr(parallel, key)} has no meaning with parallel.staleness "
            f"{parallel.staleness}, where pushes are added as they come; it must be "
            f"{getattr(plain, key)}"
            for key in ("fusion", "trim", "force")
            if getattr(parallel, key) != getattr(plain, key)
        ]
    if parallel.architecture == "sharded":
        if parallel.agents:
            mistakes.append(
                f"parallel.agents: {parallel.agents} must be 0 with parallel.architecture sharded, "
                "which has lanes, but no agents"
            )
        if parallel.fusion != "pooled":
            mistakes.append(
                f"parallel.fusion: {parallel.fusion} has no meaning with parallel.architecture "
                "sharded, where every row has one owner and nothing is fused"
            )
        mistakes += [
            f"parallel.{key}: {getattr(parallel, key)} has no meaning with parallel.architecture "
            f"sharded, where nothing is fused; it must be {getattr(plain, key)}"
            for key in ("trim", "kappa", "force")
            if getattr(parallel, key) != getattr(plain, key)
        ]
    return mistakes


def resolve(
    config: Config,
    n_states: int,
    n_actions: int,
    size: int,
    *,
    solvable: bool,
    stepped: bool = False,
) -> Config:
    """Replace what depends on the environment and the ranks by what it stands for. Local.

    solvable : whether exact values are affordable; stepped : whether it is stepped in Python.

    A resolved configuration resolves to itself, on any number of ranks.

    Raises
    ------
    ConfigError
        If there are fewer lanes than agents.
    """
    sharded = config.parallel.architecture == "sharded"
    learners = size
    if config.parallel.architecture == "server":
        learners = max(1, size - config.parallel.servers)
    agents = 0 if sharded else config.parallel.agents or learners
    many = LANES_SHARDED if sharded and not stepped else LANES_PER_AGENT * (agents or 1)
    lanes = config.parallel.lanes or many
    if lanes < agents:
        raise ConfigError(
            f"parallel.lanes: {lanes} lanes for {agents} agents (one per rank); "
            "every agent needs one"
        )
    dtype = config.learn.dtype
    if dtype == "auto":
        dtype = "float64" if n_states * n_actions <= FLOAT64_PAIRS else "float32"
    exponent = config.learn.exponent or EXPONENTS.get(config.learn.step_size, 0.0)
    stop = config.stop
    if all(value is None for value in asdict(stop).values()):
        stop = StopConfig(policy_gap=DEFAULT_GAP) if solvable else StopConfig(steps=DEFAULT_STEPS)
    return replace(
        config,
        learn=replace(config.learn, dtype=dtype, exponent=exponent),
        parallel=replace(config.parallel, agents=agents, lanes=lanes),
        stop=stop,
    )
