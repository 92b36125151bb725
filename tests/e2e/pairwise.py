"""pairwise - a small set of rows in which every pair of values of two different factors stands at least once."""
import itertools
import random


def cover(factors, allowed=lambda row: True, seed=7):
    """factors: {name: [values]}; allowed judges a whole row. Returns rows as dicts; deterministic."""
    rng = random.Random(seed)
    names = list(factors)
    everything = [dict(zip(names, values)) for values in itertools.product(*factors.values())]
    everything = [row for row in everything if allowed(row)]

    def pairs(row):
        return {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(names, 2)}

    missing = set().union(*(pairs(row) for row in everything))
    rows = []
    while missing:
        sample = everything if len(everything) <= 4000 else rng.sample(everything, 4000)
        best = max(sample, key=lambda row: len(pairs(row) & missing))
        if not pairs(best) & missing:
            best = next(row for row in everything if pairs(row) & missing)
        rows.append(best)
        missing -= pairs(best)
    return rows
