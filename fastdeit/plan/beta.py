"""Beta(alpha, alpha), the distribution of Mixup's and CutMix's lambda, from a random stream."""

import numpy as np

from fastdeit.plan.philox import RandomStream, normal, quantised, uniform


def draw_beta(
    stream: RandomStream, purpose: int, ordinals: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    """Draw from Beta(alpha, alpha) for each ordinal, float64 (G,), in multiples of 2^-24.

    A draw is x / (x + y) of two Gamma(alpha) draws x and y, whose logarithms are computed.
    ordinals: int64 (G,); purpose: of the random stream; alpha: float64 (G,).
    """
    both = np.concatenate((2 * ordinals, 2 * ordinals + 1))
    first, second = _draw_log_gamma(stream, purpose, both, np.tile(alpha, 2)).reshape(2, -1)
    return quantised(1.0 / (1.0 + np.exp(np.clip(second - first, -700, 700))))


def _draw_log_gamma(
    stream: RandomStream, purpose: int, ordinals: np.ndarray, alpha: np.ndarray
) -> np.ndarray:
    """Draw logarithms of Gamma(alpha) (Marsaglia and Tsang, ACM TOMS 26(3), 2000, with their boost
    for alpha < 1)."""
    # always Gamma(alpha + 1), then the boost by U^(1 / alpha): right for every alpha
    d = alpha + 1.0 - 1.0 / 3.0
    drawn = np.zeros(len(ordinals))
    todo = np.arange(len(ordinals))
    attempt = 0
    while todo.size:
        u = uniform(stream(ordinals[todo], [(purpose, attempt)])[0])
        x = normal(u[0], u[1])
        v = (1.0 + x / np.sqrt(9.0 * d[todo])) ** 3
        log_v = np.log(np.maximum(v, 1e-300))
        ok = (v > 0) & (np.log(u[2]) < 0.5 * x**2 + d[todo] * (1.0 - v + log_v))
        log_gamma = np.log(d[todo]) + log_v + np.log(u[3]) / alpha[todo]
        drawn[todo[ok]] = log_gamma[ok]
        todo = todo[~ok]
        attempt += 1
    return drawn
