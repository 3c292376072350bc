"""The model as it was before training (sae-model/src/parameters.rs): ChaCha8 and the ziggurat of rand_distr, in numpy.

The tables of the ziggurat are computed from its two constants, and the stream is that of RFC 8439 with 8 rounds, so
only the order in which numbers are drawn is taken from the Rust side.
"""

import math

import numpy as np

from .model import Model

BLOCK = 1024  # rows per block of sae-data's check, which computes the mean
ZIG_R, ZIG_V = 3.654152885361008796, 0.00492867323399
WORD = (1 << 64) - 1


def chacha8(seed, stream, count):
    """`count` 64-bit words of stream `stream` of the generator with this seed."""
    key, state = [], seed
    for _ in range(8):  # pcg32, as rand_core expands a seed
        state = (state * 6364136223846793005 + 11634580027462260723) & WORD
        x, rotation = (((state >> 18) ^ state) >> 27) & 0xFFFFFFFF, state >> 59
        key.append((x >> rotation | x << (32 - rotation)) & 0xFFFFFFFF)
    blocks = -(-count // 8)
    counter = np.arange(blocks, dtype=np.uint64)
    constants = np.frombuffer(b"expand 32-byte k", "<u4")
    start = [np.full(blocks, w, np.uint32) for w in [*constants, *key]]
    start += [(counter & 0xFFFFFFFF).astype(np.uint32), (counter >> 32).astype(np.uint32)]
    start += [np.full(blocks, w, np.uint32) for w in (stream & 0xFFFFFFFF, stream >> 32)]
    s = [w.copy() for w in start]

    def mixed(a, b, c, d):
        for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] += s[y]
            s[z] ^= s[x]
            s[z] = s[z] << np.uint32(by) | s[z] >> np.uint32(32 - by)

    for _ in range(4):
        for i in range(4):
            mixed(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            mixed(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    words = np.stack([a + b for a, b in zip(s, start)], axis=1)
    return words.reshape(-1).view("<u8")[:count]


def ziggurat_tables():
    def pdf(x):
        return math.exp(-x * x / 2)

    x = [ZIG_V / pdf(ZIG_R), ZIG_R]
    while len(x) < 256:
        x.append(math.sqrt(-2 * math.log(ZIG_V / x[-1] + pdf(x[-1]))))
    x.append(0.0)
    return np.array(x), np.array([pdf(v) for v in x])


def normals(seed, stream, count):
    """`count` standard normal numbers."""
    table, density = ziggurat_tables()
    bits = chacha8(seed, stream, int(count * 1.05) + 4096)
    box = (bits & 0xFF).astype(np.int64)
    u = (bits >> 12).astype(np.float64) * 2.0**-51 - 1
    x = u * table[box]
    slow = np.flatnonzero(np.abs(x) >= table[box + 1])  # 1 in 80

    def open01(at):
        return (int(bits[at]) >> 12) * 2.0**-52 + 2.0**-53

    out, done, at = [], 0, 0
    while done < count:
        stop = int(slow[np.searchsorted(slow, at)])
        out.append(x[at:stop])
        done += stop - at
        i, at = box[stop], stop + 1
        if i == 0:
            tail, y = 1.0, 0.0
            while -2 * y < tail * tail:
                tail, y, at = math.log(open01(at)) / ZIG_R, math.log(open01(at + 1)), at + 2
            value = tail - ZIG_R if u[stop] < 0 else ZIG_R - tail
        else:
            part, at = (int(bits[at]) >> 11) * 2.0**-53, at + 1
            value = x[stop]
            if density[i + 1] + (density[i] - density[i + 1]) * part >= math.exp(-value * value / 2):
                continue
        out.append([value])
        done += 1
    return np.concatenate(out)[:count]


def unit_rows(m, d, seed):
    rows = normals(seed, 0, m * d).reshape(m, d)
    return (rows / np.sqrt((rows**2).sum(1, keepdims=True))).astype(np.float32)


def kaiming(shape, fan_in, seed, stream):
    bound = math.sqrt(6 / fan_in)
    scale = 2 * bound / (1 - 2.0**-52)
    parts = (chacha8(seed, stream, math.prod(shape)) >> 12).astype(np.float64) * 2.0**-52
    return (parts * scale - bound).astype(np.float32).reshape(shape)


def training_mean(train, held_out, check_rows):
    """The initial pre-bias: the mean of all training rows, or of the blocks that the check reads, without rows of ten
    times the median norm and more (docs/DATA.md, Rows of huge norm)."""
    if check_rows is None and 4 * train.width * max(train.rows, held_out.rows) > 4 << 30:
        check_rows = (1 << 30) // (4 * train.width)
    blocks = -(-train.rows // BLOCK)
    wanted = min(max(-(-check_rows // BLOCK), 1), blocks) if check_rows else blocks

    def looked_at():
        for i in range(wanted):
            block = i * blocks // wanted
            rows = np.arange(block * BLOCK, min((block + 1) * BLOCK, train.rows))
            for _, x in train.blocks(BLOCK, rows):
                yield x, np.maximum(np.sqrt((x**2).sum(1)), 1e-30)

    bins = np.sort(np.concatenate([np.floor(64 * np.log2(norm)) for _, norm in looked_at()]))
    median = 2 ** ((bins[(len(bins) - 1) // 2] + 0.5) / 64)
    limit = 2 ** ((np.floor(64 * np.log2(10 * median)) // 8 + 1) / 8)
    total, count = np.zeros(train.width), 0
    for x, norm in looked_at():
        total, count = total + x[norm < limit].sum(0), count + (norm < limit).sum()
    return (total / count).astype(np.float32)


def untrained(cfg, seed, mean):
    """The model of `cfg.json` as it was initialised."""
    m, d, init, architecture = cfg["n_latents"], cfg["d_in"], cfg["init"], cfg["architecture"]["name"]
    rows = unit_rows(m, d, seed) if init["concepts"] == "unit" else kaiming((m, d), m, seed, 0)
    w = {"W_dec": rows}
    for stream, (name, key) in enumerate((("W_Q", "query"), ("W_K", "key"), ("W_V", "value")), 1):
        if cfg[f"{key}_projection"]:
            w[name] = np.eye(d) if init["projections"] == "identity" else kaiming((d, d), d, seed, stream)
    if architecture not in ("attention", "attention_relu"):
        w["W_enc"] = rows
    if cfg["pre_bias"]:
        w["b_dec"] = mean if init["pre_bias"] == "mean" else np.zeros(d)
    bias = -2.0 if architecture in ("relu", "attention_relu", "gated") else 0.0
    w["b_gate" if architecture == "gated" else "b_enc"] = np.full(m, bias)
    w["threshold"] = np.full(m, 2.0) if architecture == "jumprelu" else np.zeros(1)
    w["r_mag"], w["b_mag"] = np.zeros(m), np.zeros(m)
    return Model(cfg, w)
