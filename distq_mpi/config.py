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
ONE_STEP_RULES = ("q_learning", "sarsa", "expected_sarsa", "double_q")
N_STEP_RULES = ("q_learning", "sarsa", "expected_sarsa")
SWEEPING_RULES = ("speedy_q", "variance_reduced_q")
OWN_STEP_SIZES = {
    "speedy_q": "linear", "variance_reduced_q": "rescaled_linear", "ucb_hoeffding": "horizon",
    "ucb_discounted": "horizon",
}  # fmt: skip
MODEL_RULES = ("dyna_q", "prioritized_sweeping")
LONGEST_DECAY = 0.999
EXPONENTS = {"polynomial": 0.8, "sign_change": 0.6}
MOST_AGENTS = 1 << 20
"""Sums over the agents in 64-bit fixed point keep the digits they need up to as many."""
LEAST_VISITS = 32
CERTAIN_RULES = ("q_learning", "dyna_q", "prioritized_sweeping")
"""Rules whose one-step targets are as certain as the environment is."""
STATISTICS = ("median", "trimmed_mean")

Probability = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Limit = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class EnvConfig:
    """What is learned on."""

    id: str = "FrozenLake8x8-v1"
    """Gymnasium id, built-in name, module:Law, or model file; several with commas: one an agent."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment: --env.kwargs.NAME VALUE; None is None, [1, 2] a list."""
    wrappers: list[str] = field(default_factory=list)
    """module:Wrapper around Gymnasium's environment, the innermost first."""
    reset_options: dict[str, Any] = field(default_factory=dict)
    """Options of every reset of Gymnasium's environment: --env.reset_options.NAME VALUE."""
    step: bool = False
    """Step Gymnasium's environment in Python although it has a table of transitions."""
    max_episode_steps: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Time limit in steps; 0 = the environment's own."""
    time_aware: bool = False
    """The step of the episode is part of the state, and the time limit a true end."""
    bins: Count | list[Positive] = 0
    """Equal bins of each dimension of a Box, observations then actions; 0 = none."""
    clip: Limit | list[Limit] = 0.0
    """Symmetric limits of each observed dimension, where the space has none or wider; 0 = none."""


@dataclass(frozen=True)
class LearnConfig:
    """How one transition is learned from."""

    rule: Literal[
        "q_learning", "sarsa", "expected_sarsa", "double_q", "watkins_q_lambda", "speedy_q",
        "variance_reduced_q", "ucb_hoeffding", "ucb_discounted", "dyna_q",
        "prioritized_sweeping",
    ] = "q_learning"  # fmt: skip
    """What a transition bootstraps from."""
    n_steps: Annotated[int, Ge(1), Le(1000)] = 1
    """Rewards in a target before it bootstraps; q_learning: up to the first exploring action."""
    trace_decay: Probability = 0.9
    """Lambda of watkins_q_lambda."""
    sampling: Literal["auto", "trajectories", "generative"] = "auto"
    """generative: every pair draws a transition in every step; auto: trajectories if rule can."""
    planning_steps: Count = 5
    """Of dyna_q and prioritized_sweeping: remembered transitions learned from after each step."""
    priority: Annotated[float, Ge(0)] = 1e-4
    """Of prioritized_sweeping: the TD error above which a pair waits to be learned."""
    target: Literal["live", "frozen"] = "live"
    """frozen: targets and actions of a round from the table it begins with, fused by their mean."""
    frozen_rounds: Literal["auto"] | Count = "auto"
    """Rounds in which a pair takes its mean whole, before steps fall; auto: 6 / (1 - discount)."""
    epoch_samples: Positive = 200
    """Of variance_reduced_q: samples of a pair for the first reference, then 4 x more each."""
    epoch_steps: Count = 0
    """Of variance_reduced_q: sweeps with one reference; 0 = 10 / (1 - discount)."""
    bonus: Limit = 0.1
    """Of ucb_hoeffding and ucb_discounted: c sqrt(iota); theory says 1 and more, practice less."""
    horizon: Limit = 0.0
    """H of their step and bonus; 0 = the time limit, below discount 1 as the theorem has it."""
    value_low: float = 0.0
    """Of theirs: no return is below this."""
    value_high: float = 0.0
    """Of theirs: no return is above this; both 0 = as the environment declares."""
    discount: Probability = 0.99
    """Gamma, the weight of the future."""
    step_size: Literal[
        "rescaled_linear", "constant", "polynomial", "linear", "sign_change", "horizon",
    ] = "rescaled_linear"  # fmt: skip
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
    agents: Annotated[int, Ge(0), Le(MOST_AGENTS)] = 0
    """Learners, the unit of fusion; 0 = one per rank (none in sharded); fixes the bits."""
    lanes: Count = 0
    """Environments in all; 0 = 64 per agent; in sharded 8192, or 64 stepped in Python."""
    reproducible: bool = True
    """The same bits on any number of ranks; false: sharded's lanes run free, fusion hogwild."""
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
        "trimmed_mean", "max", "hogwild",
    ] = "pooled"  # fmt: skip
    """How the agents' tables become one."""
    trim: Count = 1
    """Values dropped at either end by trimmed_mean; it and median need 2 trim + 1 values."""
    least_visits: Literal["auto"] | Positive = "auto"
    """Of median and trimmed_mean: visits behind a value; auto: 32, if targets are certain 1."""
    force: bool = False
    """Allow a fusion that does not converge: max where it overestimates, delta beyond its limit."""
    memory_bytes: Count = 0
    """What one rank may use; 0 = all of its host's memory."""
    protect: Literal["off", "partner"] = "off"
    """A copy of every block on another rank: sharded (borders stay), server out of step."""
    hang_s: Annotated[float, Ge(0)] = 300.0
    """Seconds without a step after which a rank is given up, and its stack shown; 0 = never."""
    on_loss: Literal["shrink", "respawn", "abort"] = "shrink"
    """When ranks are lost, if MPI survives it: go on with those left, or start others for them."""


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
    """Exact (optimal - policy value) / min(range of V*, optimal - worst value) at most this."""
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
    """Sections and keys without those that are off (None), as TOML can hold them."""
    return {
        section: {key: toml_value(value) for key, value in values.items() if value is not None}
        for section, values in asdict(config).items()
    }


def toml_value(value: Any) -> Any:
    """Return a value as TOML can hold it: None as the text None, tuples as lists. Local."""
    if value is None:
        return "None"
    if isinstance(value, list | tuple):
        return [toml_value(item) for item in value]
    if isinstance(value, dict):
        return {name: toml_value(item) for name, item in value.items()}
    return value


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
    "allreduce": "which is reproducible but with parallel.fusion hogwild",
    "server": "where parallel.staleness decides whether it is",
}
"""Architectures in which `parallel.reproducible` has no say, and why."""


def check(config: Config) -> list[str]:
    """Mistakes between keys, each naming the key, the value and the limit. Local."""
    learn, parallel, mistakes = config.learn, config.parallel, []
    own = OWN_STEP_SIZES.get(learn.rule, learn.step_size)
    if learn.discount == 1 and learn.step_size == own == "rescaled_linear":
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
    mistakes += _check_traces(config) + _check_generative(config) + _check_optimism(config)
    mistakes += _check_frozen(config) + _check_out_of_step(config)
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
    exact = parallel.architecture in OTHERWISE_REPRODUCIBLE and parallel.fusion != "hogwild"
    if exact and not parallel.reproducible:
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
    mistakes += _check_hogwild(config)
    if parallel.least_visits != "auto" and parallel.fusion not in STATISTICS:
        mistakes.append(
            f"parallel.least_visits: {parallel.least_visits} has a meaning with parallel.fusion "
            f"{' or '.join(STATISTICS)} only; it must be auto"
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


def _check_hogwild(config: Config) -> list[str]:
    """Mistakes about agents that write to one table without locks."""
    learn, parallel = config.learn, config.parallel
    if parallel.fusion != "hogwild":
        return []
    wanted = [
        ("parallel.reproducible", parallel.reproducible, (False,), "bits depend on who is faster"),
        ("parallel.architecture", parallel.architecture, ("allreduce",), "one host has the table"),
        ("learn.rule", learn.rule, ONE_STEP_RULES, "other rules keep more than a table"),
        ("learn.n_steps", learn.n_steps, (1,), "traces follow a table that nobody else changes"),
        ("learn.target", learn.target, ("live",), "there is no table that rests"),
        ("learn.sampling", learn.sampling, ("auto", "trajectories"), "sweeps are of one agent"),
    ]
    mistakes = [
        "learn.step_size: sign_change must be another with parallel.fusion hogwild: signs are "
        "voted on"
    ] * (learn.step_size == "sign_change")
    return mistakes + [
        f"{key}: {_told(value)} must be {' or '.join(map(_told, allowed))} with parallel.fusion "
        f"hogwild: {why}"
        for key, value, allowed, why in wanted
        if value not in allowed
    ]


def _told(value: object) -> str:
    """A value as it is written on the command line and in TOML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_traces(config: Config) -> list[str]:
    """Mistakes about what lanes remember."""
    learn, mistakes = config.learn, []
    if learn.n_steps > 1 and learn.rule not in N_STEP_RULES:
        why = {
            "double_q": "an action is greedy for both parts together, not for the one that is "
            "updated, so no part knows where its target must end",
            "dyna_q": "a model tells single steps",
            "prioritized_sweeping": "a model tells single steps",
            "watkins_q_lambda": "which mixes targets of all lengths; learn.trace_decay weighs them",
        }.get(learn.rule, "whose theory knows one step only")
        mistakes.append(
            f"learn.n_steps: {learn.n_steps} must be 1 with learn.rule {learn.rule}: {why}"
        )
    decay = learn.discount * learn.trace_decay
    traced = learn.rule == "watkins_q_lambda"
    if traced and decay > LONGEST_DECAY:
        mistakes.append(
            f"learn.trace_decay: learn.discount x learn.trace_decay = {decay:g} must be <= "
            f"{LONGEST_DECAY:g} with learn.rule {learn.rule}, or a trace never fades"
        )
    if config.parallel.architecture == "sharded" and learn.rule in MODEL_RULES:
        mistakes.append(
            f"learn.rule: {learn.rule} needs parallel.architecture allreduce: in sharded a rank "
            "plans with no other's rows, and most of a model leads there"
        )
    if config.parallel.architecture == "sharded" and (traced or learn.n_steps > 1):
        key, value = ("rule", learn.rule) if traced else ("n_steps", learn.n_steps)
        mistakes.append(
            f"learn.{key}: {value} needs parallel.architecture allreduce: in sharded the pairs of "
            "a lane's past belong to other ranks than the row that tells their targets"
        )
    return mistakes


def _check_generative(config: Config) -> list[str]:
    """Mistakes about sweeps over all pairs, and about rules with a step size of their own."""
    learn, parallel, mistakes = config.learn, config.parallel, []
    own = OWN_STEP_SIZES.get(learn.rule)
    if own and learn.step_size not in (own, LearnConfig.step_size):
        mistakes.append(
            f"learn.step_size: {learn.step_size} must be {own} with learn.rule {learn.rule}, "
            "which is proven with that one"
        )
    if learn.rule in SWEEPING_RULES and learn.sampling == "trajectories":
        mistakes.append(
            f"learn.sampling: trajectories must be generative with learn.rule {learn.rule}, whose "
            "targets read the whole table as it was before a sweep"
        )
    if not sweeps(learn):
        return mistakes
    if learn.rule not in ("q_learning", *SWEEPING_RULES):
        mistakes.append(
            f"learn.sampling: generative has no behaviour that learn.rule {learn.rule} could "
            "follow; take q_learning"
        )
    if learn.n_steps > 1 and learn.rule not in SWEEPING_RULES:
        mistakes.append(
            f"learn.n_steps: {learn.n_steps} must be 1 with learn.sampling generative, where no "
            "step follows another"
        )
    if parallel.architecture == "sharded":
        mistakes.append(
            "parallel.architecture: sharded must be allreduce with learn.sampling generative: it "
            "learns where lanes go"
        )
    if parallel.lanes and parallel.lanes != parallel.agents:
        mistakes.append(
            f"parallel.lanes: {parallel.lanes} must be 0 with learn.sampling generative, where an "
            "agent sweeps all pairs at once"
        )
    averages, several = parallel.fusion in ("mean", "count"), parallel.agents > 1
    if learn.rule in SWEEPING_RULES and several and not averages:
        mistakes.append(
            f"parallel.fusion: {parallel.fusion} must be mean or count with learn.rule "
            f"{learn.rule} and several agents: the rule is linear in its samples, so averages are "
            "what more samples give"
        )
    return mistakes


def _check_optimism(config: Config) -> list[str]:
    """Mistakes about rules that explore by optimism."""
    env, learn, parallel = config.env, config.learn, config.parallel
    mistakes: list[str] = []
    if learn.rule not in ("ucb_hoeffding", "ucb_discounted"):
        return mistakes
    if (learn.rule == "ucb_hoeffding") != (learn.discount == 1):
        other = "ucb_discounted" if learn.discount < 1 else "ucb_hoeffding"
        mistakes.append(
            f"learn.discount: {learn.discount:g} is for learn.rule {other}: ucb_hoeffding learns "
            "episodes without discount, ucb_discounted with"
        )
    elif learn.discount == 1 and not env.time_aware:
        mistakes.append(
            "env.time_aware: false must be true with learn.rule ucb_hoeffding, which has a table "
            "for every step of an episode"
        )
    elif learn.discount == 0:
        mistakes.append("learn.discount: 0 must be > 0 with learn.rule ucb_discounted")
    if learn.initial != "optimistic":
        mistakes.append(
            f"learn.initial: {learn.initial} must be optimistic with learn.rule {learn.rule}, "
            "which explores by it"
        )
    if learn.exploration != "epsilon_greedy":
        mistakes.append(
            f"learn.exploration: {learn.exploration} must be epsilon_greedy with learn.rule "
            f"{learn.rule}, whose behaviour is greedy (learn.epsilon is then 0 unless set)"
        )
    if learn.value_low > learn.value_high:
        mistakes.append(
            f"learn.value_low: {learn.value_low:g} must be <= learn.value_high "
            f"{learn.value_high:g}"
        )
    averages, several = parallel.fusion in ("mean", "count"), parallel.agents > 1
    if learn.rule == "ucb_discounted" and several and not averages:
        mistakes.append(
            f"parallel.fusion: {parallel.fusion} must be mean or count with learn.rule "
            "ucb_discounted and several agents: of upper bounds only averages are sure to be some"
        )
    return mistakes


def _check_frozen(config: Config) -> list[str]:
    """Mistakes about targets that are frozen for a round."""
    learn, parallel = config.learn, config.parallel
    if learn.target == "live":
        return []
    wanted = [
        ("learn.rule", learn.rule, "q_learning", "the mean of its targets is a step of value "
         "iteration; no other rule's is known to be"),
        ("learn.n_steps", learn.n_steps, 1, "targets of several steps depend on the behaviour"),
        ("parallel.fusion", parallel.fusion, "pooled", "all targets of a round weigh the same"),
    ]  # fmt: skip
    mistakes = [
        f"{key}: {value} must be {only} with learn.target frozen: {why}"
        for key, value, only, why in wanted
        if value != only
    ]
    if parallel.architecture == "sharded":
        mistakes.append(
            "parallel.architecture: sharded must be allreduce or server with learn.target frozen: "
            "it keeps no table of the round's beginning"
        )
    if learn.step_size == "sign_change":
        mistakes.append(
            "learn.step_size: sign_change must be another one with learn.target frozen, where a "
            "clock counts rounds"
        )
    if learn.discount == 1:
        mistakes.append(
            "learn.discount: 1 must be < 1 with learn.target frozen, which converges by contraction"
        )
    return mistakes


def _check_out_of_step(config: Config) -> list[str]:
    """Mistakes about what is pushed as it comes."""
    learn, parallel = config.learn, config.parallel
    if parallel.architecture != "server" or parallel.staleness == 0:
        return []
    why = (
        f"with parallel.staleness {parallel.staleness}: what is pushed is a difference of one-step "
        "targets, and nothing is known of others; take parallel.staleness 0"
    )
    wanted: list[tuple[str, Any, Any]] = [
        ("n_steps", learn.n_steps, 1), ("target", learn.target, "live"),
        ("sampling", "generative" if sweeps(learn) else "auto", "auto"),
    ]  # fmt: skip
    mistakes = [f"learn.{key}: {value} must be {only} {why}"
                for key, value, only in wanted if value != only]  # fmt: skip
    if learn.rule not in ONE_STEP_RULES:
        rules = ", ".join(ONE_STEP_RULES)
        mistakes.append(f"learn.rule: {learn.rule} must be one of {rules} {why}")
    return mistakes


def sweeps(learn: LearnConfig) -> bool:
    """Whether every pair draws a transition in every step. Local."""
    chosen = learn.sampling == "auto" and learn.rule in SWEEPING_RULES
    return chosen or learn.sampling == "generative"


def resolve(
    config: Config,
    n_states: int,
    n_actions: int,
    size: int,
    *,
    solvable: bool,
    stepped: bool = False,
    deterministic: bool = False,
) -> Config:
    """Replace what depends on the environment and the ranks by what it stands for. Local.

    solvable : whether exact values are affordable; stepped : whether it is stepped in Python;
    deterministic : whether it is known that a pair always leads to the same.

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
    whole = config.learn.frozen_rounds
    if whole == "auto":
        whole = round(6 / (1 - config.learn.discount)) if config.learn.discount < 1 else 0
    generative, epsilon = sweeps(config.learn), config.learn.epsilon
    if config.learn.rule in ("ucb_hoeffding", "ucb_discounted") and epsilon == LearnConfig.epsilon:
        epsilon = 0.0
    lanes = config.parallel.lanes or (agents if generative else many)
    if lanes < agents:
        raise ConfigError(
            f"parallel.lanes: {lanes} lanes for {agents} agents (one per rank); "
            "every agent needs one"
        )
    dtype = config.learn.dtype
    if dtype == "auto":
        dtype = "float64" if n_states * n_actions <= FLOAT64_PAIRS else "float32"
    exponent = config.learn.exponent or EXPONENTS.get(config.learn.step_size, 0.0)
    step_size: Any = OWN_STEP_SIZES.get(config.learn.rule, config.learn.step_size)
    epoch = config.learn.epoch_steps
    if not epoch and config.learn.discount < 1:
        epoch = round(10 / (1 - config.learn.discount))
    stop = config.stop
    if all(value is None for value in asdict(stop).values()):
        stop = StopConfig(policy_gap=DEFAULT_GAP) if solvable else StopConfig(steps=DEFAULT_STEPS)
    least = config.parallel.least_visits
    if least == "auto":
        certain = deterministic and config.learn.rule in CERTAIN_RULES and (
            config.learn.n_steps == 1
        )
        if config.parallel.fusion in STATISTICS and agents > 1:
            least = 1 if certain else LEAST_VISITS
    return replace(
        config,
        learn=replace(
            config.learn, dtype=dtype, exponent=exponent, step_size=step_size, epoch_steps=epoch,
            sampling="generative" if generative else "trajectories", epsilon=epsilon,
            frozen_rounds=whole,
        ),
        parallel=replace(config.parallel, agents=agents, lanes=lanes, least_visits=least),
        stop=stop,
    )
