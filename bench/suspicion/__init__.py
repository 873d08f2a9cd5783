"""The harness suspects a model: is the gradient that of its answers, an answer that of its row."""
