"""The built-in attacks: one paper, one file. The registry loads them by name."""

INDEX = {
    "jsma": "attacks.jsma.plugin:Jsma",
    "fgsm": "attacks.fgsm:FGSM",
    "pgd": "attacks.pgd:PGD",
    "apgd": "attacks.apgd:APGD",
    "square": "attacks.square:Square",
    "fmn": "attacks.fmn:FMN",
    "noise": "attacks.noise:Noise",
    "transfer": "attacks.transfer:Transfer",
    "surrogate": "attacks.surrogate:Surrogate",
    "art": "attacks.peers.art:Art",
    "jsma_reference": "attacks.jsma.reference:JsmaReference",
    "torchattacks_jsma": "attacks.peers.torchattacks:TorchattacksJsma",
    "submission": "attacks.submission:Submission",
    "sparse_rs": "attacks.sparse_rs:SparseRs",
    "sigma_zero": "attacks.sigma_zero:SigmaZero",
    "foolbox": "attacks.peers.foolbox:Foolbox",
    "fooling": "attacks.fooling:Fooling",
    "advgan": "attacks.advgan:AdvGAN",
    "universal": "attacks.universal:Universal",
    "patch": "attacks.patch:Patch",
}
