"""The built-in attacks: one paper, one file. The registry loads them by name."""

INDEX = {
    "jsma": "attacks.jsma_plugin:Jsma",
    "fgsm": "attacks.fgsm:FGSM",
    "art": "attacks.art:Art",
    "jsma_reference": "attacks.jsma_reference:JsmaReference",
    "torchattacks_jsma": "attacks.torchattacks:TorchattacksJsma",
    "submission": "attacks.submission:Submission",
}
