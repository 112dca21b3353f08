"""What was found, in the sentences that a table and a page begin with."""

from tfkd_fast.study.results import CONFIDENCE, StudyResults, difference_text

SIGNIFICANT = 1.0 - CONFIDENCE
"""Adjusted p below which a row is called better or worse than the baseline."""


def finding_words(results: StudyResults) -> str:
    """What was found so far: the best row, its difference to the baseline, and how many rows differ from it."""
    best, title = results.best, results.rows[results.baseline].title
    if best is None or best.test_top1 is None:
        return "Nothing is known yet: no run is finished and tested."
    if not results.top1[results.baseline]:
        return (
            f"{best.title} has the highest test top-1 so far, {best.test_top1.mean:.2f} %; nothing is known yet of "
            f"{title}, the baseline."
        )
    others = [line for line in results.lines if line.difference is not None]
    if not others:
        return f"{title} has a test top-1 of {best.test_top1.mean:.2f} %; there is no other row to compare it with yet."
    if best.difference is None:
        top1 = f"{best.test_top1.mean:.2f} % test top-1"
        lead = f"No row is better than {title}, the baseline ({top1}), under the same seeds."
    else:
        pairs = f"{best.difference.pairs} seed{'s' * (best.difference.pairs > 1)}"
        lead = (
            f"{best.title} is the best row, with a test top-1 of {best.test_top1.mean:.2f} %: "
            f"{difference_text(best.difference)} points to {title}, paired over {pairs}."
        )
    tested = [line for line in others if line.adjusted_p is not None]
    if not tested:
        return f"{lead} Whether other seeds would say the same is not known: no row has two different pairs of runs."
    apart = [line for line in tested if line.adjusted_p is not None and line.adjusted_p < SIGNIFICANT]
    better = sum(line.difference is not None and line.difference.mean > 0 for line in apart)
    return (
        f"{lead} Rows that differ from the baseline by p < {SIGNIFICANT:.2f}, adjusted by Holm's method, are "
        f"{len(apart)} of {len(others)}: {better} better, {len(apart) - better} worse."
    )
