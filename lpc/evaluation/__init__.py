"""The parts of `lpc.evaluate`: what is evaluated, on which tasks, by which lm-eval backend, and what comes out."""
