"""The built-in defenses: one paper, one file. The registry loads them by name."""

from defenses.broken import INDEX as BROKEN

INDEX = {
    "undefended": "defenses.undefended:Undefended",
    "twin": "defenses.undefended:Twin",
    "distillation": "defenses.distillation:Distillation",
    "temperature_only": "defenses.distillation:TemperatureOnly",
    "label_smoothing": "defenses.label_smoothing:LabelSmoothing",
    "soft_label": "defenses.label_smoothing:SoftLabel",
    "adversarial_training": "defenses.adversarial_training:AdversarialTraining",
    "trades": "defenses.trades:Trades",
    "virtual_adversarial_training": "defenses.virtual_adversarial:VirtualAdversarialTraining",
    "weight_decay": "defenses.controls:WeightDecay",
    "gaussian_augmentation": "defenses.controls:GaussianAugmentation",
    "dropout": "defenses.controls:Dropout",
    "robust_distillation": "defenses.robust_distillation:RobustDistillation",
    "knowledge_distillation": "defenses.knowledge_distillation:KnowledgeDistillation",
    "standard_training": "defenses.standard_training:StandardTraining",
    "randomised_smoothing": "defenses.randomised_smoothing:RandomisedSmoothing",
    "live": "defenses.live:Live",
    "checkpoint": "defenses.checkpoint:Checkpoint",
    **BROKEN,
}
