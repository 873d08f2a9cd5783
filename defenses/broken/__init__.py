"""Defenses that were published, believed and broken, each with its paper and the way round it.

One paper, one file, small enough for digits. What each paper claimed, and who broke it to what
figure, is data: ``leaderboard/papers/broken``. The matrix ``broken`` runs them beside defenses that
do hold.
"""

INDEX = {
    "adaptive": "defenses.broken.base:Adaptive",
    "thermometer_encoding": "defenses.broken.inputs.thermometer:ThermometerEncoding",
    "input_transformation": "defenses.broken.inputs.transformation:InputTransformation",
    "feature_squeezing": "defenses.broken.inputs.squeezing:FeatureSqueezing",
    "random_resize_pad": "defenses.broken.inputs.resize_pad:RandomResizePad",
    "generative_projection": "defenses.broken.inputs.projection:GenerativeProjection",
    "magnet": "defenses.broken.inputs.magnet:Magnet",
    "k_winners_take_all": "defenses.broken.activations.k_winners:KWinnersTakeAll",
    "activation_pruning": "defenses.broken.activations.pruning:ActivationPruning",
    "saturating_network": "defenses.broken.activations.saturating:SaturatingNetwork",
    "gradient_regularisation": "defenses.broken.activations.regularised:GradientRegularisation",
    "ensemble_diversity": "defenses.broken.ensembles.diversity:EnsembleDiversity",
    "mixed_precision_ensemble": "defenses.broken.ensembles.precision:MixedPrecisionEnsemble",
    "output_codes": "defenses.broken.ensembles.codes:OutputCodes",
    "mixup_inference": "defenses.broken.ensembles.mixup:MixupInference",
}
