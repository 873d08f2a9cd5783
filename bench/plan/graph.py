"""A matrix as a graph of work, with every node named, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from bench.base.fingerprint import digest
from bench.base.types import Document, Norm, Spec, ThreatModel, UserError, spec_of
from bench.plan.matrix import MatrixConfig, parse_matrix
from bench.plan.panel import Panel, make_attack
from bench.plugins import registry
from bench.plugins.contracts import LEARNT, Attack, DataSource, Defense, LearningAttack
from bench.plugins.parameter import as_spec
from bench.plugins.recipes import find_recipe

Kind = Literal["fit", "probe", "attack-fit", "cell"]

FITS: tuple[Kind, ...] = ("fit", "attack-fit")
"""The kinds of nodes that learn, and leave weights."""

SCALE = 0.1
"""At what distance, in input units, a model is looked at where no L∞ panel has a smaller budget."""


@dataclass(frozen=True)
class Closes:
    """What a closer is given: the sources that still stand at a budget of a panel.

    ``norm``, ``budget``: of the panel, in its units; ``after``: the cells whose records say what
    still stands; ``above``: the share of the sources above which it is worth running; ``round``:
    where it stands among closers; ``since``: those of ``after`` that must have broken something,
    where it is only to go on with what they began.
    """

    norm: Norm
    budget: float
    round: int
    above: float
    after: Sequence[str]
    since: Sequence[str] | None = None

    def threat(self, features: int) -> ThreatModel:
        """Return the threat model on inputs of so many ``features``."""
        return Panel(norm=self.norm, budgets=[self.budget]).threat(self.budget, features)


@dataclass(frozen=True)
class Node:
    """One piece of work. ``id`` is the hash of ``document``; ``needs`` names fits by role.

    A fit trains a defense; a probe measures a fit; a cell attacks one; an attack's fit learns
    what cells of that attack need. All but the first need their fit under the name ``model``, and
    a cell what its attack learnt under ``learnt``; further needs are what the plugin's
    ``requires`` named.
    A closer's cell comes ``after`` other cells of its model, and attacks what they left; one that
    ``follows`` a probe runs where that found the gradient not to be that of the answers.
    """

    id: str
    kind: Kind
    document: Document
    needs: Mapping[str, str]

    def defense(self) -> Defense:
        """Return the defense that a fit trains; raises UserError where its plugin is not loaded."""
        return self._defense

    def fitted(self) -> Defense:
        """Return the defense that a fit trains, as it is at its training seed."""
        return at_seed(self._defense, self.document["seed"])

    def attack(self) -> Attack:
        """Return the attack of a cell or of an attack's fit, as it is fitted.

        Raises UserError where its plugin is not loaded.
        """
        return self._attack

    @property
    def closes(self) -> Closes | None:
        """What a closer's cell is to finish; None of every other node."""
        document = self.document.get("closes")
        return None if document is None else Closes(**document)

    @property
    def follows(self) -> str | None:
        """The probe that says whether this cell is called for; None of every other node."""
        found: str | None = self.document.get("follows")
        return found

    @property
    def after(self) -> Sequence[str]:
        """The nodes that come before this one: what it needs, and what a closer comes after."""
        closes, follows = self.closes, self.follows
        probes = [] if follows is None else [follows]
        return [*self.needs.values(), *(closes.after if closes else ()), *probes]

    def plugin(self) -> Defense | Attack:
        """Return the defense of a fit, the attack of a cell or of an attack's fit."""
        return self.defense() if self.kind == "fit" else self.attack()

    @cached_property
    def _defense(self) -> Defense:
        return registry.DEFENSES.make(spec_of(self.document["defense"]))

    @cached_property
    def _attack(self) -> Attack:
        return registry.ATTACKS.make(spec_of(self.document["attack"]))


@dataclass(frozen=True)
class Plan:
    """The nodes of a matrix, each after all that it needs, and the matrix that they come from."""

    matrix: MatrixConfig
    dataset: Document
    network: Document
    recipe: str
    nodes: tuple[Node, ...]

    @cached_property
    def reference(self) -> Document | None:
        """The defense that the others are compared with, its name and parameters; None without."""
        spec = self.matrix.compared_with()
        return None if spec is None else registry.DEFENSES.document(registry.DEFENSES.make(spec))

    def of(self, kind: Kind) -> list[Node]:
        """Return the nodes of one kind, in order."""
        return [node for node in self.nodes if node.kind == kind]

    def document(self) -> Document:
        """Return the plan as JSON."""
        nodes = [
            {"id": node.id, "kind": node.kind, "document": node.document, "needs": dict(node.needs)}
            for node in self.nodes
        ]
        return {"matrix": self.matrix.model_dump(mode="json"), "nodes": nodes}


def read_plan(document: Document) -> Plan:
    """Return the plan that ``Plan.document`` wrote; raises UserError where it is none."""
    try:
        nodes = tuple(Node(**item) for item in document["nodes"])
        matrix = parse_matrix(document["matrix"], "plan.json")
        shared = next(node.document for node in nodes if node.kind == "fit")
        recipe_name = shared["recipe"]["name"]
        return Plan(matrix, shared["dataset"], shared["network"], recipe_name, nodes)
    except (KeyError, TypeError, StopIteration) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"plan.json is no plan that Retort wrote: {what}") from error


def node_id(node: Node) -> str:
    """Return the plan id of ``node``: the hash of its kind and document."""
    return digest({"kind": node.kind, **node.document})[:16]


def make_plan(matrix: MatrixConfig) -> Plan:
    """Expand ``matrix``; raises UserError for an unknown plugin, parameter or recipe."""
    source = registry.DATASETS.make(as_spec(matrix.dataset))
    network = as_spec(matrix.network or {"name": source.network})
    builder = _Builder(
        {
            "dataset": registry.DATASETS.document(source),
            "network": registry.NETWORKS.document(registry.NETWORKS.make(network)),
            "recipe": {"name": (name := _recipe(matrix, source)), **vars(find_recipe(name))},
        },
        matrix,
    )
    defenses = [registry.DEFENSES.make(spec) for spec in matrix.defenses()]
    if (spec := matrix.compared_with()) is not None:
        reference = registry.DEFENSES.make(spec)
        if reference not in defenses:
            defenses.insert(0, reference)  # a verdict compares with it
        _check_seeds(reference, defenses, matrix)
    for defense in list(defenses):
        with registry.asking(defense, "plain"):
            plain = as_defense(defense.plain())
        if matrix.panel and plain is not None and plain not in defenses:
            defenses.insert(defenses.index(defense), plain)  # its verdict compares with that
    attacks = [make_attack(spec) for spec in matrix.attacks()]
    seeds = {id(defense): seeds_of(defense, matrix) for defense in defenses}
    for seed in dict.fromkeys(seed for several in seeds.values() for seed in several):
        for defense in defenses:
            if seed in seeds[id(defense)]:
                builder.add_defense(defense, attacks, seed)
    shared = builder.shared
    return Plan(matrix, shared["dataset"], shared["network"], name, tuple(builder.nodes.values()))


def data_name(dataset: Document) -> str:
    """Return what a data set is called: its registered name, or that of the file it lies in."""
    path = dataset["params"].get("path")
    return str(dataset["name"]) if path is None else Path(path).stem


def seeds_of(defense: Defense, matrix: MatrixConfig) -> Sequence[int]:
    """Return the training seeds of a defense: its own, counted from 0, or the run's."""
    with registry.asking(defense, "trained"):
        trained = defense.trained()
    return matrix.seeds if trained is None else range(len(trained))


def at_seed(defense: Defense, seed: int) -> Defense:
    """Return what a defense is at one of its training seeds."""
    with registry.asking(defense, "trained"):
        trained = defense.trained()
        return defense if trained is None else trained[seed]


def _check_seeds(reference: Defense, defenses: Sequence[Defense], matrix: MatrixConfig) -> None:
    """Raise UserError where a training seed has no counterpart: one for all serves, or its own."""
    known = seeds_of(reference, matrix)
    for defense in defenses:
        seeds = seeds_of(defense, matrix)
        if len(known) > 1 and not set(seeds) <= set(known):
            raise UserError(
                f"the reference {registry.DEFENSES.name_of(reference)!r} has the training seeds "
                f"{list(known)}, and {registry.DEFENSES.name_of(defense)!r} has {list(seeds)}: "
                "give one reference for all, or one for each"
            )


def as_defense(given: Defense | Spec | None) -> Defense | None:
    """Return the defense that another one names; raises UserError where there is none."""
    return registry.DEFENSES.make(given) if isinstance(given, Spec) else given


def _recipe(matrix: MatrixConfig, source: DataSource) -> str:
    """Return the name of the recipe of a run: its own, the data set's, the paper's."""
    if matrix.recipe != "paper":
        return matrix.recipe or source.recipe
    if source.paper_recipe is None:
        raise UserError(
            f'recipe "paper" is known for mnist and cifar10, not for {matrix.dataset["name"]!r}: '
            f"its own is {source.recipe!r}"
        )
    return source.paper_recipe


def _probe_document(fit: str, matrix: MatrixConfig) -> Document:
    counts = [matrix.probe_samples, matrix.sources]
    samples = "all" if "all" in counts else max(counts)
    budgets = [min(panel.budgets) for panel in matrix.panel if panel.norm == "linf"]
    return {
        "fit": fit,
        "samples": samples,
        "scale": min([*budgets, SCALE]),  # farther off nothing was calibrated
        "sources": matrix.sources,
        "source_seed": matrix.source_seed,
    }


class _Builder:
    """Collects nodes by id, so that a teacher that several students name is one fit."""

    def __init__(self, shared: Document, matrix: MatrixConfig) -> None:
        self.shared = shared
        self.matrix = matrix
        self.nodes: dict[str, Node] = {}

    def add_defense(self, defense: Defense, attacks: Iterable[Attack], seed: int) -> None:
        fit = self._fit(defense, seed)
        probe = self._add("probe", _probe_document(fit, self.matrix), {"model": fit})
        for attack in attacks:
            self._cell(fit, attack, seed)
        for panel in self.matrix.panel:
            for budget in panel.budgets:
                self._close(fit, probe, panel, budget, seed)

    def _cell(
        self, fit: str, attack: Attack, seed: int,
        closes: Closes | None = None, follows: str | None = None,
    ) -> str:  # fmt: skip
        matrix = self.matrix
        required = self._required(attack, seed)
        learnt = self._attack_fit(fit, attack, seed)
        if {"model", LEARNT} & required.keys():
            name = registry.ATTACKS.name_of(attack)
            raise UserError(f"attack {name!r}: requires may name no role 'model' or {LEARNT!r}")
        document = {
            "fit": fit,
            "attack": registry.ATTACKS.document(attack),
            "sources": matrix.sources,
            "source_seed": matrix.source_seed,
            "requires": required,
            # Only where there is any: the ids of all other cells say nothing of it.
            **learnt,
            **({"most_passes": matrix.most_passes} if matrix.most_passes else {}),
            **({"closes": asdict(closes)} if closes else {}),
            **({"follows": follows} if follows else {}),
        }
        return self._add("cell", document, {"model": fit, **required, **learnt})

    def _attack_fit(self, fit: str, attack: Attack, seed: int) -> dict[str, str]:
        """Add what an attack has to learn about a model; nothing where it learns nothing."""
        if not isinstance(attack, LearningAttack):
            return {}
        with registry.asking(attack, "fitted_as"):
            attack = attack.fitted_as()
            if not isinstance(attack, LearningAttack):
                raise TypeError(f"a bench.LearningAttack is expected, got {type(attack).__name__}")
        required = self._required(attack, seed)
        document = {
            "fit": fit,
            "attack": registry.ATTACKS.document(attack),
            "seed": seed,
            "requires": required,
        }
        return {LEARNT: self._add("attack-fit", document, {"model": fit, **required})}

    def _close(self, fit: str, probe: str, panel: Panel, budget: float, seed: int) -> None:
        """Add the closers of a panel at one budget, round after round, each after all before it."""
        before: list[str] = []
        added: list[str] = []
        entries = [entry for entry in self.matrix.panel_entries(panel) if entry.serves(budget)]
        steps = sorted({(entry.effort, entry.round) for entry in entries})
        for step in steps:
            since, added = added, []
            for entry in [e for e in entries if (e.effort, e.round) == step]:
                attack = registry.ATTACKS.make(entry.spec)
                closes = None
                if entry.round:
                    closes = Closes(
                        panel.norm,
                        budget,
                        entry.round,
                        entry.above,
                        list(before),
                        since if entry.unsettled else None,
                    )
                follows = probe if entry.role == "follow-up" else None
                added.append(self._cell(fit, attack, seed, closes, follows))
            before += added

    def _fit(self, defense: Defense | Spec, seed: int) -> str:
        if isinstance(defense, Spec):
            defense = registry.DEFENSES.make(defense)
        seeds = seeds_of(defense, self.matrix)
        if seed not in seeds:  # what is needed beside a defense that brings seeds of its own
            seed = seeds[seed % len(seeds)]
        required = self._required(defense, seed)
        document = {
            **self.shared,
            "defense": registry.DEFENSES.document(defense),
            "seed": seed,
            "requires": required,
        }
        return self._add("fit", document, required)

    def _required(self, plugin: Defense | Attack, seed: int) -> dict[str, str]:
        with registry.asking(plugin, "requires"):
            return {str(role): self._fit(need, seed) for role, need in plugin.requires().items()}

    def _add(self, kind: Kind, document: Document, needs: Mapping[str, str]) -> str:
        node = node_id(Node("", kind, document, needs))
        self.nodes.setdefault(node, Node(node, kind, document, needs))
        return node
