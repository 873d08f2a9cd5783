"""A network as it comes, made one that maps inputs in [0, 1] to logits: what is guessed is said."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bench.base.text import reason_of
from bench.base.types import UserError, as_number

Layout = Literal["nchw", "nhwc"]
Order = Literal["rgb", "bgr"]

Numbers = str | float | Sequence[float]

Way = tuple[nn.Module, tuple[str, ...]]
"""A network as it can be asked, and what to say of that."""


@dataclass(frozen=True)
class Form:
    """How a network wants its inputs, which the harness has in [0, 1], channels first, as RGB.

    ``bounds``: the range that it was trained on, as (−1, 1) or (0, 255); then ``mean`` and
    ``std``, one value a channel or one for all, in units of that range: what it gets is
    (x − mean) / std. ``layout``: None finds out, by asking.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    layout: Layout | None = None
    order: Order = "rgb"

    @classmethod
    def of(
        cls,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        range: Numbers | None = None,  # noqa: A002 (what it is called everywhere)
        layout: Layout | None = None,
        order: Order = "rgb",
    ) -> Form:
        """Return the form that such words describe: ``"0.5,0.5,0.5"``, ``"-1,1"``, ``"125/255"``.

        Raises ValueError for what is no such number or cannot be.
        """
        middle, spread, bounds = (
            None if given is None else _numbers(given, name)
            for given, name in ((mean, "mean"), (std, "std"), (range, "range"))
        )
        if (middle is None) != (spread is None):
            raise ValueError("mean and std go together: give the other one too, 0 or 1")
        if spread is not None and min(spread) <= 0:
            raise ValueError(f"std must be positive, got {std!r}")
        if bounds is not None and (len(bounds) != 2 or bounds[0] >= bounds[1]):
            raise ValueError(f'range must be two ascending numbers, as "-1,1", got {range!r}')
        pair = (0.0, 1.0) if bounds is None else (bounds[0], bounds[1])
        return cls(middle, spread, pair, layout, order)

    @property
    def plain(self) -> bool:
        """Whether inputs go in as they are."""
        return self.mean is None and self.bounds == (0, 1) and self.order == "rgb"


def _numbers(given: Numbers, name: str) -> tuple[float, ...]:
    parts = given.split(",") if isinstance(given, str) else given
    listed = parts if isinstance(parts, Sequence) else [parts]
    try:
        return tuple(as_number(item) if isinstance(item, str) else float(item) for item in listed)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'{name} must be numbers with commas, as "0.5,0.5,0.5": {error}'
        ) from error


class Adapted(nn.Module):
    """``network`` with its inputs made as ``form`` says, and the logits taken out of its answer.

    Inputs: (batch, *shape) in [0, 1]; gradients go through all of it, and a budget is one of these
    inputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, form: Form, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.form = form
        channels = shape[0] if len(shape) == 3 else 1
        for name, values in (("mean", form.mean or (0.0,)), ("std", form.std or (1.0,))):
            if len(values) not in (1, channels):
                raise UserError(
                    f"{name} has {len(values)} values and the inputs {channels} channels: "
                    "give one for each, or one for all"
                )
            view = (len(values), 1, 1) if len(shape) == 3 else (1,) * len(shape)
            self.register_buffer(name, torch.tensor(values).view(view), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes)."""
        low, high = self.form.bounds
        if (low, high) != (0, 1):
            x = low + (high - low) * x
        if self.form.mean is not None:
            x = (x - self.mean) / self.std
        if self.form.order == "bgr":
            x = x.flip(1)
        if self.form.layout == "nhwc":
            x = x.permute(0, 2, 3, 1).contiguous()
        return logits_of(self.network(x))


def logits_of(answer: Any) -> Tensor:
    """Return the logits in what a network answers: a tensor, ``logits`` of it, or its first matrix.

    That of a tuple: a loss may stand before them.

    Raises UserError where there are none.
    """
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, Mapping):
        found = answer.get("logits", answer.get("out"))
    else:
        found = getattr(answer, "logits", None)
    if found is None and isinstance(answer, tuple | list) and answer:
        found = next((item for item in answer if _is_matrix(item)), answer[0])
    if isinstance(found, Tensor):
        return found
    what = f"a {type(answer).__name__}"
    if isinstance(answer, Mapping):
        what += f" with {', '.join(map(str, answer)) or 'nothing'}"
    raise UserError(
        f"the model must return logits (n, classes), got {what}: return a tensor, a tuple that "
        "begins with it, or an object or dict with logits"
    )


def _several(answer: Any) -> tuple[str, ...]:
    """Return a note where a tuple holds several matrices that could be the logits."""
    shapes = [tuple(item.shape) for item in answer if _is_matrix(item)] if _is_tuple(answer) else []
    if len({shape[1] for shape in shapes}) < 2:
        return ()
    shown = " and ".join(map(str, shapes))
    return (f"for two rows the model answers {shown}: the first is taken; are those its logits?",)


def _is_tuple(answer: Any) -> bool:
    return isinstance(answer, tuple | list)


def _is_matrix(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dim() == 2


def adapt(model: Any, form: Form, shape: tuple[int, ...], classes: int | None = None) -> Way:
    """Return ``model`` as the harness takes one, itself where it is that already, and notes.

    It is asked about two rows of ``shape``, in evaluation mode. ``classes``: of the data, None
    where the model's own number is good. Raises UserError where no way of asking gives logits.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the model must be a torch.nn.Module, got {_kind(model)}: wrap it in one whose "
            "forward returns logits, with gradients"
        )
    if isinstance(model, torch.jit.ScriptModule):
        model = InItsOwn(model)  # it takes no hooks, by which what it is asked is counted
    model, notes, layout, answer = _first_that_answers(_float32(model), form, shape)
    if layout == "nhwc" and form.layout is None:
        notes = (*notes, 'the model takes images with channels last (layout = "nhwc")')
    if not isinstance(answer, Tensor):
        notes = (*notes, f"the model's logits are taken out of its {type(answer).__name__}")
        notes += _several(answer)
    _check(logits_of(answer), classes)
    if form.plain and layout == "nchw" and isinstance(answer, Tensor):
        return model, notes
    found = Form(form.mean, form.std, form.bounds, layout, form.order)
    return Adapted(model, found, shape), notes


class InItsOwn(nn.Module):
    """``network``, which casts inputs to the dtype of its weights, with logits in that of x."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes)."""
        return logits_of(self.network(x)).to(x.dtype)


def _float32(model: nn.Module) -> list[Way]:
    """Return the ways to ask ``model`` with inputs of float32, the best first, and what to say.

    One that casts its inputs by itself can be asked with weights of that dtype alone.
    """
    kinds = {
        value.dtype
        for value in (*model.parameters(), *model.buffers())
        if value.is_floating_point() and value.dtype != torch.float32
    }
    if not kinds:
        return [(model, ())]
    words = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    # A copy: the model that somebody handed us stays as it is.
    cast = copy.deepcopy(model).float()
    ways: list[Way] = [(cast, (f"the model is {words}, and was cast to float32",))]
    if len(kinds) == 1:
        ways.append((InItsOwn(model), (f"the model is {words}, and is asked in it",)))
    return ways


def _first_that_answers(
    ways: Sequence[Way], form: Form, shape: tuple[int, ...]
) -> tuple[nn.Module, tuple[str, ...], Layout, Any]:
    """Return the first way that answers, with its layout and answer; raises what the first does."""
    errors = []
    for model, notes in ways:
        try:
            return model, notes, *_in_evaluation(model, form, shape)
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _in_evaluation(model: nn.Module, form: Form, shape: tuple[int, ...]) -> tuple[Layout, Any]:
    """Return what ``_asked`` does, asked in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        return _asked(model, form, shape)
    finally:
        for module in training:
            module.training = True


def _asked(model: nn.Module, form: Form, shape: tuple[int, ...]) -> tuple[Layout, Any]:
    """Return the layout that the model takes, and what it answers to two rows in it."""
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    rows = torch.linspace(0.25, 0.75, 2, device=device).view(2, *(1 for _ in shape))
    rows = rows.expand(2, *shape).contiguous()
    first: Layout = form.layout or "nchw"
    errors = []
    for layout in [first] if form.layout or len(shape) != 3 else ["nchw", "nhwc"]:
        chosen = Form(form.mean, form.std, form.bounds, "nhwc" if layout == "nhwc" else "nchw",
                      form.order)  # fmt: skip
        asked = _Raw(model, chosen, shape)
        try:
            with torch.no_grad():
                answer = asked(rows)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 (other people's code)
            errors.append(reason_of(error))
        else:
            _ask_one(asked, rows[:1])
            return chosen.layout or first, answer
    fixed = "size()[0]" in errors[0]  # what a guard of torch.export says
    hint = "; export it for any number of rows (dynamic_shapes)" if fixed else _shape_hint(shape)
    raise UserError(f"the model takes no input of shape {(2, *shape)}: {errors[0]}{hint}")


def _ask_one(asked: nn.Module, row: Tensor) -> None:
    try:
        with torch.no_grad():
            asked(row)
    except Exception as error:
        raise UserError(
            f"the model answers two rows and not one: {reason_of(error)}; is a layer of batch "
            "normalisation in training mode, or the number of rows fixed?"
        ) from error


class _Raw(Adapted):
    """The same inputs, and whatever the network answers to them."""

    def forward(self, x: Tensor) -> Any:
        """Return the network's own answer."""
        outputs: list[Any] = []
        hook = self.network.register_forward_hook(lambda _, __, out: outputs.append(out))
        try:
            super().forward(x)
        except UserError:
            if not outputs:
                raise
        finally:
            hook.remove()
        return outputs[0]


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return (
            f"; the data are images of {shape[0]} channels, {shape[1]} × {shape[2]}: resize them, "
            "or let the builder make the network for them"
        )
    if len(shape) == 2:
        return "; images are (n, channels, height, width): give x[:, None]"
    return "; let the model's forward take such rows"


def _check(logits: Tensor, classes: int | None) -> None:
    found = f"the model must return logits (n, classes), got {tuple(logits.shape)}"
    if logits.dim() == 1 or (logits.dim() == 2 and logits.shape[1] == 1):
        raise UserError(
            f"{found} for 2 rows: one logit z of two classes is written "
            "torch.stack([-z / 2, z / 2], dim=1); a class or a probability is no logit"
        )
    if logits.dim() != 2 or len(logits) != 2:
        raise UserError(f"{found} for 2 rows: is the head of the network missing?")
    if not logits.is_floating_point():
        raise UserError(f"{found} of {logits.dtype}: return logits, not the class (no argmax)")
    if classes is not None and logits.shape[1] != classes:
        more = (
            ": name the number of classes in the file of arrays (classes=…)"
            if logits.shape[1] > classes
            else ": the labels go beyond what the model knows; do they count from 0?"
        )
        raise UserError(
            f"the model must return logits of shape (2, {classes}), got {tuple(logits.shape)}: it "
            f"has {logits.shape[1]} classes and the data {classes}{more}"
        )


def _kind(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__
