"""Faults for `SmpServer.answers`: what becomes of the answers to the NSUBs of one block. They can be nested."""

from collections.abc import Callable

AnswersFault = Callable[[list[bytes]], list[bytes]]


def lose_every(n: int) -> AnswersFault:
    """Every nth answer is lost, counted over all blocks."""
    count = 0

    def fault(answers: list[bytes]) -> list[bytes]:
        nonlocal count
        out = [a for i, a in enumerate(answers, count + 1) if i % n]
        count += len(answers)
        return out

    return fault


def duplicate(answers: list[bytes]) -> list[bytes]:
    """Every answer comes twice."""
    return [a for answer in answers for a in (answer, answer)]


def reverse(answers: list[bytes]) -> list[bytes]:
    """The last answer of a block comes first."""
    return answers[::-1]


def mix_blocks(n: int) -> AnswersFault:
    """The answers to the next n blocks come together, the last one first; those to later blocks as they should."""
    kept: list[bytes] = []
    left = n

    def fault(answers: list[bytes]) -> list[bytes]:
        nonlocal left
        left -= 1
        if left < 0:
            return answers
        kept.extend(answers)
        return [] if left else kept[::-1]

    return fault
