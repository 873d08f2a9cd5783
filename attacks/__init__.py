"""The built-in attacks: one paper, one file. The registry loads them by name."""

INDEX = {
    "jsma": "attacks.jsma_plugin:Jsma",
    "fgsm": "attacks.fgsm:FGSM",
    "pgd": "attacks.pgd_plugin:PGD",
    "noise": "attacks.noise:Noise",
    "transfer": "attacks.transfer:Transfer",
    "art": "attacks.art:Art",
    "jsma_reference": "attacks.jsma_reference:JsmaReference",
    "torchattacks_jsma": "attacks.torchattacks:TorchattacksJsma",
    "submission": "attacks.submission:Submission",
    "sparse_rs": "attacks.sparse_rs_plugin:SparseRs",
    "sigma_zero": "attacks.sigma_zero_plugin:SigmaZero",
    "foolbox": "attacks.foolbox:Foolbox",
    "fooling": "attacks.fooling_plugin:Fooling",
}
