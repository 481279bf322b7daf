"""Steps of LARS and AdamW, written out in float64 on dicts of numpy arrays: not a test."""

import numpy as np


def slow_lars(weights, gradients, momentum, *, lr, m, weight_decay, trust):
    """(weights, momentum) after a step; each is {name: float64 array}."""
    new_weights, new_momentum = {}, {}
    for name, w in weights.items():
        g, rate = gradients[name], 1.0
        if w.ndim > 1:
            g = g + weight_decay * w
            length, of_g = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            rate = trust * length / of_g if length > 0 and of_g > 0 else 1.0
        new_momentum[name] = m * momentum[name] + lr * rate * g
        new_weights[name] = w - new_momentum[name]
    return new_weights, new_momentum


def slow_adamw(weights, gradients, moments, step, *, lr, betas, eps, weight_decay):
    """(weights, moments) after step number `step`, counted from 1; moments: {name: (first, second)}."""
    new_weights, new_moments = {}, {}
    for name, w in weights.items():
        g, (first, second) = gradients[name], moments[name]
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g**2
        mean, square = first / (1 - betas[0] ** step), second / (1 - betas[1] ** step)
        new_weights[name] = w - lr * weight_decay * w - lr * mean / (np.sqrt(square) + eps)
        new_moments[name] = first, second
    return new_weights, new_moments
