"""The built-in defenses: one paper, one file. The registry loads them by name."""

INDEX = {
    "undefended": "defenses.undefended:Undefended",
    "distillation": "defenses.distillation:Distillation",
    "temperature_only": "defenses.distillation:TemperatureOnly",
    "label_smoothing": "defenses.label_smoothing:LabelSmoothing",
    "soft_label": "defenses.label_smoothing:SoftLabel",
    "checkpoint": "defenses.checkpoint:Checkpoint",
}
