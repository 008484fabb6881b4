"""Fewer tokens for a support: the most similar ones become one, which counts for all of them.

The head's time grows with the tokens that a support keeps, and its attention over them is a softmax: n equal tokens are
the same as one with n times its weight. So tokens are merged by Ward's rule, the pair first whose merging moves the
tokens least, until few enough are left.
"""

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.float32]


def fewer_tokens(kept: npt.NDArray[np.floating], most: int) -> tuple[Tokens, npt.NDArray[np.float32]]:
    """Merge image tokens of a support until at most `most` are left; the class token, the first, is not touched.

    The same tokens always give the same result.

    Args:
        kept: (C, 1 + T, d), L2-normalized, class token first.
        most: At least 1.

    Returns:
        (C, 1 + t, d) float32 with t <= most, where a merged token is the mean of its own and not normalized; and how
        many tokens each stands for, (1 + t,) float32.
    """
    tokens = np.asarray(kept, np.float32)
    image = tokens[:, 1:]
    if image.shape[1] <= most:
        return tokens, np.ones(tokens.shape[1], np.float32)
    groups = _groups(image.transpose(1, 0, 2).reshape(image.shape[1], -1), most)
    share = groups / groups.sum(axis=1, keepdims=True)  # t, T
    merged = np.matmul(share, image)  # C, t, d
    count = np.concatenate([[1.0], groups.sum(axis=1)]).astype(np.float32)
    return np.concatenate([tokens[:, :1], merged], axis=1), count


def _groups(points: Tokens, most: int) -> Tokens:
    """Put T points (T, D) into `most` < T groups: (most, T) float32, 1 where a point is in a group, else 0."""
    squares = (points.astype(np.float64) ** 2).sum(axis=1)
    cost = (squares[:, None] + squares - 2 * points @ points.T) / 2  # of merging two groups, by Ward's rule
    np.fill_diagonal(cost, np.inf)
    sizes = np.ones(len(points))
    members = np.eye(len(points), dtype=np.float32)
    for _ in range(len(points) - most):
        one, other = divmod(int(cost.argmin()), len(cost))
        # Lance and Williams: the cost of merging every other group with the new one.
        both = sizes[one] + sizes[other]
        new = (sizes[one] + sizes) * cost[one] + (sizes[other] + sizes) * cost[other] - sizes * cost[one, other]
        new /= both + sizes
        new[[one, other]] = np.inf
        cost[one], cost[:, one] = new, new
        sizes[one], members[one] = both, members[one] + members[other]
        cost = np.delete(np.delete(cost, other, axis=0), other, axis=1)
        sizes, members = np.delete(sizes, other), np.delete(members, other, axis=0)
    return members
