"""How to mend what a check found: one line for each check."""

from __future__ import annotations

ADVICE = {
    # Every plugin
    "contract": (
        "make it a frozen dataclass that subclasses its contract in bench.plugins.contracts"
    ),
    "documentation": (
        "write a docstring that opens with the source and names each parameter with its meaning "
        "and range"
    ),
    "source": "put the class into a file: its code is part of a result's identity",
    "parameters": "let __post_init__ accept the defaults, and say in ValueError what it refuses",
    "round trip": (
        "let every parameter be text, a number, a truth value, None or a table of these, and let "
        "__post_init__ accept what it stored: workers get documents, never instances"
    ),
    # Defenses and networks
    "fit": "let build return a torch.nn.Module, and fit train it in place",
    "build": "return a torch.nn.Module made for info.shape and info.classes",
    "training data": "work on train.x.clone(): the data are shared",
    "logits": "return finite floating logits (batch, classes) at T = 1",
    "forward": "work on a copy: forward must not write into its input",
    "repeated query": "declare stochastic = True, or switch dropout and noise off in eval mode",
    "batch independence": (
        "let no row depend on the others: no statistics of the batch in eval mode"
    ),
    "same fit": (
        "draw from context.generator, or from torch's global generator: the run seeds both"
    ),
    "same build": "initialise from torch's global generator, which the run seeds",
    "rebuild": (
        "keep all that is learnt in parameters and buffers, and make the whole structure in "
        "build: a model is stored as build plus its state dict"
    ),
    "gradients": (
        "use differentiable operations; a defense may declare differentiable = False, or "
        "override surrogate with a module that has gradients"
    ),
    # Attacks
    "threat model": (
        "let threat return a bench.ThreatModel, and targets and access one of the words that "
        "bench.Attack lists"
    ),
    "requirements": "let requires return {name: defense or bench.Spec}",
    "fit of an attack": (
        "let build(info) return a torch.nn.Module, and fit one with the same weights, all finite"
    ),
    "what it learns from": (
        "work on train.x.clone(), take gradients with torch.autograd.grad, and leave the model's "
        "weights, mode, gradients and hooks as they were"
    ),
    "output": (
        "return a bench.Perturbation whose x_adv has the shape and dtype of x, with one entry a "
        "row in iterations and stop_reason"
    ),
    "box": "clip to [0, 1], and return no NaN",
    "budget": "project onto the threat model that threat returns",
    "effect": (
        "look for a gradient that is zero, or labels taken for targets: y is the label, target "
        "the class to reach, None where targets is untargeted"
    ),
    "access": (
        "declare what it uses: gradients, scores, decisions, or transfer where the model itself "
        "is never queried"
    ),
    "same output": (
        "draw from context.generator(x.device), or from the global generators: the run seeds all"
    ),
    "row by row": (
        "leave rowwise at False, or let nothing of a row depend on the other rows: draw from "
        "streams of its own"
    ),
    "a single row": "handle a batch of one",
    "side effects": (
        "work on x.clone(), take gradients with torch.autograd.grad, and leave the model's "
        "weights, mode, gradients and hooks as they were"
    ),
    # Data sources
    "load": "return a bench.Dataset, as bench.plugins.data.assemble makes it",
    "splits": (
        "give float32 inputs (n, *shape) in [0, 1] and int64 labels (n,) in [0, classes), as "
        "info says"
    ),
    "same data": "fix the order of rows and splits, with numpy's RandomState, say",
    "defaults": "let network and recipe name what is registered",
}
