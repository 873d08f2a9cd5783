"""A defense whose network is not the run's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bench.base.types import Spec, UserError
from bench.plugins import parameter, registry
from bench.plugins.contracts import BuildContext, Defense
from bench.plugins.parameter import NameOrTable


@dataclass(frozen=True, kw_only=True)
class OtherNetwork(Defense):
    """A defense that is built on ``network``: by name, or as a table with its parameters.

    None is the run's own network. Raises ``ValueError`` for an unknown one or a wrong parameter of
    it; ``build`` raises UserError where the network does not take the inputs of the data set.
    """

    network: NameOrTable | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.network is not None:
            _, table = parameter.resolve(registry.NETWORKS, "network", self.network, "mlp")
            object.__setattr__(self, "network", table)

    def plain(self) -> Defense | Spec | None:
        """Name the same network, trained on hard labels alone."""
        return (
            None if self.network is None else Spec("standard_training", {"network": self.network})
        )

    def code(self) -> Sequence[Callable[..., Any]]:
        """Name the network."""
        if self.network is None:
            return ()
        assert isinstance(self.network, Mapping)
        return (registry.NETWORKS.get(self.network["name"]),)

    def build(self, context: BuildContext) -> nn.Module:
        """Return the network, untrained."""
        if self.network is None:
            return context.network()
        assert isinstance(self.network, Mapping)
        try:
            return registry.NETWORKS.make(parameter.as_spec(self.network)).build(context.info)
        except ValueError as error:
            raise UserError(f"network {self.network['name']!r}: {error}") from error
