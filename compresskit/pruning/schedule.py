"""How much to prune at which step: fast at first, when there is much to spare, ever slower towards the target.

The curve is that of Zhu and Gupta, "To prune, or not to prune" (2017), which SparseBERT follows.
"""


def cubic_sparsity(step: int, begin: int, end: int, final_sparsity: float) -> float:
    """Sparsity to hold at `step`: 0 until `begin`, `final_sparsity` from `end` on, and between them
        s = final_sparsity · (1 − (1 − u)³),   u = (step − begin) / (end − begin).

    A matrix that starts at sparsity s0 holds s0 + cubic_sparsity(step, begin, end, final_sparsity − s0).
    """
    if begin >= end:
        raise ValueError(f"pruning ends at step {end}, which is not after its begin at step {begin}; train longer")
    progress = min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final_sparsity * (1 - (1 - progress) ** 3)
