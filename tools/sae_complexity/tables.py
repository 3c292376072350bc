"""The numbers as Markdown tables, and sentences that follow from them."""

NEVER = "-"


def number(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def interval(entry: dict[str, float]) -> str:
    return f"{number(entry['value'])} [{number(entry['low'])}, {number(entry['high'])}]"


def plain(name: str) -> str:
    """A name from a file as text in a table."""
    return "".join("\\" + c if c in "\\|`*_<>[]&" else c for c in name)


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def methods_table(result: dict) -> list[str]:
    heads = ["method", "runs", "L0", "SD over rows", "5 % to 95 % of rows", "rho of L0 between seeds"]
    lines = [row(heads), "|---|---:|---:|---:|---:|---:|"]
    for method in result["methods"]:
        l0, between = method["l0"], method["between_seeds"]
        same = "L0 is constant: left out below" if method["constant"] else NEVER if between is None else number(between)
        numbers = [f"{l0['mean']:.1f}", f"{l0['sd']:.1f}", f"{l0['p5']:.0f} to {l0['p95']:.0f}"]
        lines.append(row([plain(method["name"]), str(len(method["runs"])), *numbers, same]))
    return lines


def rho_table(result: dict, key: str, differences: str) -> list[str]:
    """One line per measure that has `key`; empty if none has."""
    entries = [entry for entry in result["measures"] if all(key in own for own in entry["methods"].values())]
    if not entries:
        return []
    names = [method["name"] for method in result["methods"] if not method["constant"]]
    heads = [f"{plain(name)}: rho, rho²" for name in names]
    heads += [f"\\|rho\\| more than {plain(name)}" for name in names[1:]]
    lines = [row(["L0 and", "rows", *heads]), "|---|" + "---:|" * (1 + len(heads))]
    for entry in entries:
        cells = [entry["name"] + (" (control)" if entry["control"] else ""), f"{entry['rows']:,}"]
        for name in names:
            own = entry["methods"][name][key]
            cells.append(f"{interval(own)}, {100 * own['value'] ** 2:.1f} %")
        cells += [interval(entry[differences][name]) for name in names[1:]]
        lines.append(row(cells))
    return lines


def side_of(entry: dict[str, float]) -> int:
    """1 or -1 if the interval is on one side of 0, else 0."""
    return 1 if entry["low"] > 0 else -1 if entry["high"] < 0 else 0


def listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def direction_sentences(result: dict, name: str) -> list[str]:
    """Whether L0 of one method rises where rows are complex, measure by measure."""
    kinds: dict[str, list[str]] = {"rises": [], "falls": [], "neither": []}
    own = {entry["name"]: entry for entry in result["measures"] if not entry["control"]}
    for measure, entry in own.items():
        side = side_of(entry["methods"][name]["rho"])
        kinds["rises" if side > 0 else "falls" if side < 0 else "neither"].append(measure)
    parts = [f"rises with {listed(kinds['rises'])}"] if kinds["rises"] else []
    parts += [f"falls with {listed(kinds['falls'])}"] if kinds["falls"] else []
    parts += [f"neither rises nor falls measurably with {listed(kinds['neither'])}"] if kinds["neither"] else []
    sentences = [f"L0 of {name} {'; it '.join(parts)}."]
    judged = {measure: entry for measure, entry in own.items() if entry["complex"]}
    agree = [m for m, entry in judged.items() if side_of(entry["methods"][name]["rho"]) == entry["complex"]]
    against = [m for m, entry in judged.items() if side_of(entry["methods"][name]["rho"]) == -entry["complex"]]
    simple = " (a frequent token is a simple one)" if any(entry["complex"] < 0 for entry in judged.values()) else ""
    sentences += [
        f"Of the {len(judged)} measures for which one end is the complex one{simple}, L0 is larger on complex rows for "
        f"{len(agree)} and smaller for {len(against)}."
    ] * bool(judged)
    strongest = max(own, key=lambda measure: abs(own[measure]["methods"][name]["rho"]["value"]))
    rho = own[strongest]["methods"][name]["rho"]["value"]
    sentences.append(
        f"The largest |rho| is {number(rho).lstrip('+−')}, with {strongest}: rho² = {rho**2:.2f}, so the two have "
        f"{100 * rho**2:.0f} % of the variance of their ranks in common, and {100 - 100 * rho**2:.0f} % not."
    )
    return sentences


def comparison_sentence(result: dict, first: str, other: str, differences: str, given: str) -> str:
    """For how many measures |rho| of one method is above that of another, by the interval of the difference."""
    kinds: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for entry in result["measures"]:
        if not entry["control"] and entry[differences]:
            kinds[side_of(entry[differences][other])].append(entry["name"])

    def told(side: int) -> str:
        return str(len(kinds[side])) + (f" ({listed(kinds[side])})" if kinds[side] else "")

    total = sum(map(len, kinds.values()))
    return (
        f"{given}L0 of {first} follows {told(1)} of {total} measures more closely, up or down, than L0 of {other} does, "
        f"{told(-1)} less closely, and {told(0)} not measurably differently."
    )


def sentences(result: dict) -> list[str]:
    """What the numbers say of the first method, and of it beside the others."""
    names = [method["name"] for method in result["methods"] if not method["constant"]]
    told = direction_sentences(result, names[0])
    for other in names[1:]:
        told.append(comparison_sentence(result, names[0], other, "differences", ""))
    if any(entry["differences_given_norm"] for entry in result["measures"]):
        for other in names[1:]:
            told.append(comparison_sentence(result, names[0], other, "differences_given_norm", "Given the norm, "))
    return told


def about(result: dict) -> str:
    documents = f"{result['documents']:,} documents" if result["documents"] else None
    out = f" {result['rows_left_out']:,} rows beyond data.max_norm are left out." if result["rows_left_out"] else ""
    return (
        f"{result['rows']:,} held-out rows{f' of {documents}' if documents else ''}.{out} Spearman's rho, mean over the runs "
        f"of a method, with bootstrap intervals of 95 %: {result['draws']:,} draws of {documents or 'rows'} with replacement, "
        f"the same for all methods. They say nothing of other seeds. rho²: the part of the variance of ranks in common."
    )


def markdown(result: dict) -> str:
    blocks = [["### " + plain(result["title"])], [about(result), *result["notes"]], methods_table(result)]
    blocks.append(rho_table(result, "rho", "differences"))
    if partial := rho_table(result, "given_norm", "differences_given_norm"):
        blocks += [["Given the norm of the row (partial rank correlation):"], partial]
    blocks.append([plain(sentence) for sentence in result["sentences"]])
    return "\n\n".join("\n".join(block) for block in blocks if block)
