"""Mean activation: how loud a unit is, whatever is made of it."""

from nas.evidence import Evidence
from nas.importance.scores import UnitScores, of_heads


def activation(evidence: Evidence, block: int) -> UnitScores:
    """The mean norm of a head's output and the mean absolute value of a channel over calibration tokens.

    The order of Minitron (arXiv 2407.14679, sec. 2.2) and of LLM Compression with NAS (arXiv 2410.06479), but
    one order for each block: channel i of one block has nothing to do with channel i of another.
    """
    activity = evidence.activity[block]
    return of_heads(evidence.shape, activity.head_norm, activity.channel_magnitude)
