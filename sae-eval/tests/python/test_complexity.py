"""Tests tools/complexity.py on data whose rank correlations are known, and through the program on runs made up for it.

    python3 sae-eval/tests/python/test_complexity.py        (numpy; with scipy it tests more)
"""

import contextlib
import importlib.util
import io
import json
import pathlib
import sys
import tempfile
import unittest
import xml.etree.ElementTree
from unittest import mock

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import complexity
from sae_complexity import ranks, wordnet
from sae_complexity.analyse import analyse
from sae_complexity.measures import Found, Measure
from sae_complexity.runs import Method
from sae_complexity.tables import sentences

DRAWS = 200
DOCUMENTS, LENGTH, WIDTH = 40, 12, 4
DTYPES = {"float32": "F32", "int64": "I64", "int32": "I32", "uint64": "U64", "uint32": "U32"}


def write_tensors(path, **tensors):
    header, data = {}, b""
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values).tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": DTYPES[str(values.dtype)], "shape": list(values.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def one_method(name, l0, architecture="attention"):
    return Method(name, architecture, ["run"], [np.asarray(l0)])


def rho_of(x, y, unit, draws=DRAWS):
    return ranks.told(ranks.correlations([x, y], unit, int(unit.max()) + 1, draws, 0)[:, 0, 1])


def width(entry):
    return entry["high"] - entry["low"]


class Ranks(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(1)

    def test_orders_that_agree_and_oppose(self):
        x = self.rng.normal(size=300)
        self.assertAlmostEqual(ranks.spearman(x, np.exp(x)), 1)
        self.assertAlmostEqual(ranks.spearman(x, -(x**3)), -1)

    def test_normal_variables(self):
        """Of normal variables with correlation r, Spearman's rho is 6/pi asin(r/2)."""
        for r in (-0.8, 0.0, 0.5):
            x, noise = self.rng.normal(size=(2, 40_000))
            y = r * x + np.sqrt(1 - r * r) * noise
            self.assertAlmostEqual(ranks.spearman(x, y), 6 / np.pi * np.arcsin(r / 2), delta=0.02)

    def test_ties_share_the_mean_rank(self):
        x, y = [3, 1, 1, 7, 3, 3], [1, 1, 2, 5, 5, 3]
        by_hand = np.corrcoef([4, 1.5, 1.5, 6, 4, 4], [1.5, 1.5, 3, 5.5, 5.5, 4])[0, 1]
        self.assertAlmostEqual(ranks.spearman(np.array(x), np.array(y)), by_hand)

    def test_a_constant_has_no_correlation(self):
        self.assertTrue(np.isnan(ranks.spearman(np.ones(50), np.arange(50))))

    def test_a_weight_is_so_many_copies_of_a_row(self):
        x, y = self.rng.integers(6, size=(2, 80))
        weights = self.rng.integers(4, size=80)
        weighted = ranks.rank_correlations([ranks.Ordered(x), ranks.Ordered(y)], weights.astype(float))[0, 1]
        self.assertAlmostEqual(weighted, ranks.spearman(np.repeat(x, weights), np.repeat(y, weights)))

    @unittest.skipUnless(importlib.util.find_spec("scipy"), "needs scipy")
    def test_scipy_agrees(self):
        from scipy.stats import bootstrap, rankdata, spearmanr

        x = self.rng.poisson(3, size=500)
        y = x + self.rng.poisson(5, size=500)
        self.assertAlmostEqual(ranks.spearman(x, y), spearmanr(x, y).statistic, places=12)
        np.testing.assert_allclose(ranks.Ordered(x).ranks(np.ones(500)) + 0.5, rankdata(x))
        own = rho_of(x, y, np.arange(500), 1000)
        other = bootstrap(
            (x, y),
            lambda x, y: spearmanr(x, y).statistic,
            paired=True,
            vectorized=False,
            n_resamples=1000,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        self.assertAlmostEqual(own["low"], other.low, delta=0.02)
        self.assertAlmostEqual(own["high"], other.high, delta=0.02)

    def test_partial_is_the_correlation_of_what_the_third_leaves(self):
        z = self.rng.normal(size=3000)
        x, y = z + self.rng.normal(size=3000), z + self.rng.normal(size=3000)
        rho = ranks.correlations([x, y, z], np.arange(3000), 3000, 1, 0)[0]
        given = ranks.partial(rho[0, 1], rho[0, 2], rho[1, 2])
        rank = [np.argsort(np.argsort(v)).astype(float) for v in (x, y, z)]
        left = [v - np.polyval(np.polyfit(rank[2], v, 1), rank[2]) for v in rank[:2]]
        self.assertAlmostEqual(given, np.corrcoef(left)[0, 1])
        self.assertGreater(rho[0, 1], 0.4)
        self.assertLess(abs(given), 0.1)


class Bootstrap(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(2)

    def test_rows_alone(self):
        """Without a correlation the standard deviation of rho is 1 / sqrt(n - 1), so an interval is 3.92 times as wide."""
        x, y = self.rng.normal(size=(2, 1000))
        self.assertAlmostEqual(width(rho_of(x, y, np.arange(1000), 1000)), 3.92 / np.sqrt(999), delta=0.02)

    def test_documents_are_wider_than_rows_where_rows_of_a_document_are_alike(self):
        document = np.repeat(np.arange(60), 25)
        x, y = self.rng.normal(size=(2, 60))[:, document] + 0.1 * self.rng.normal(size=(2, 1500))
        ratio = width(rho_of(x, y, document)) / width(rho_of(x, y, np.arange(1500)))
        self.assertAlmostEqual(ratio, 5, delta=1.5)  # sqrt(25)

    def test_documents_are_not_wider_where_rows_are_independent(self):
        document = np.repeat(np.arange(60), 25)
        x, y = self.rng.normal(size=(2, 1500))
        self.assertAlmostEqual(width(rho_of(x, y, document)) / width(rho_of(x, y, np.arange(1500))), 1, delta=0.35)

    def test_methods_have_the_same_draws(self):
        values = self.rng.normal(size=800)
        l0 = np.round(20 + 3 * values + 3 * self.rng.normal(size=800)).astype(int)
        every = [
            one_method("a", l0),
            one_method("b", l0),
            one_method("c", l0 + self.rng.integers(2, size=800)),
            one_method("d", -2 * l0),
        ]
        found = Found([Measure("m", values, 1)], [], np.arange(800), False)
        (entry,) = analyse(every, found, np.ones(800), DRAWS, 0)
        self.assertEqual(entry["differences"]["b"], {"value": 0.0, "low": 0.0, "high": 0.0})
        self.assertLess(width(entry["differences"]["c"]), width(entry["methods"]["a"]["rho"]) / 3)
        self.assertAlmostEqual(entry["differences"]["d"]["value"], 0)  # as strong, in the other direction
        self.assertLess(entry["methods"]["d"]["rho"]["high"], -0.5)

    def test_runs_of_a_method_are_averaged(self):
        values = np.arange(400.0)
        every = [Method("a", "attention", ["0", "1"], [np.arange(400), self.rng.permutation(400)])]
        (entry,) = analyse(every, Found([Measure("m", values)], [], np.arange(400), False), np.ones(400), DRAWS, 0)
        own = entry["methods"]["a"]
        self.assertAlmostEqual(own["runs"][0], 1)
        self.assertAlmostEqual(own["rho"]["value"], np.mean(own["runs"]))

    def test_rows_without_a_value_are_left_out(self):
        values = np.where(np.arange(500) % 5, np.arange(500.0), np.nan)
        found = Found([Measure("m", values), Measure("all", np.arange(500.0))], [], np.arange(500) // 10, True)
        entries = analyse([one_method("a", np.arange(500))], found, self.rng.uniform(1, 2, 500), DRAWS, 0)
        self.assertEqual([entry["rows"] for entry in entries], [400, 500, 500])
        self.assertEqual(entries[0]["tenths"][0]["rows"], 40)
        self.assertTrue(entries[2]["control"])
        self.assertNotIn("given_norm", entries[2]["methods"]["a"])

    def test_tenths(self):
        values = self.rng.permutation(1000).astype(float)
        np.testing.assert_array_equal(ranks.tenths(values), values // 100)
        many = np.array([1] * 650 + [2] * 300 + [9] * 50, float)
        np.testing.assert_array_equal(ranks.tenths(many), [0] * 650 + [1] * 300 + [2] * 50)
        l0, unit = self.rng.integers(30, size=1000), np.arange(1000) // 20
        means = ranks.group_means(l0, values.astype(int) // 100, unit, 50, DRAWS, 0)
        np.testing.assert_allclose(means[0], [l0[values // 100 == i].mean() for i in range(10)])
        self.assertAlmostEqual(means[1:, 0].std() / (l0.std() / 10), 1, delta=0.4)  # of a mean of 100 rows


class WordNet(unittest.TestCase):
    NOUNS = """  1 the licence
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | all that is
00000002 05 n 02 Animal 0 beast 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | a living thing; "a wild animal"
00000003 05 n 01 dog 1 002 @ 00000002 n 0000 @ 00000004 n 0000 | it barks
00000004 06 n 01 pet 0 001 @ 00000002 n 0000 | a tame animal
00000005 05 n 01 Rex 0 001 @i 00000003 n 0000 | a genus of dogs
00000006 05 n 01 wolf 0 001 @ 00000002 n 0000 | a genus of dogs
"""
    INDEX = """  1 the licence
entity n 1 1 ~ 1 1 00000001
animal n 3 2 @ ~ 3 1 00000002 00000004 00000006
dog n 7 2 @ ~ 7 1 00000003
"""

    def test_glosses(self):
        with tempfile.TemporaryDirectory() as work:
            directory = pathlib.Path(work)
            (directory / "data.noun").write_text(self.NOUNS)
            (directory / "index.noun").write_text(self.INDEX)
            texts = [
                "a living thing",
                'a living thing; "a wild animal"',
                "it barks",
                "a genus of dogs",
                "no gloss",
                "all that is",
            ]
            found = list(wordnet.of_glosses(directory, texts))
            self.assertEqual(wordnet.depths(wordnet.read_synsets(directory))["00000005"], 3)
        self.assertEqual(found, [(1, 3, 1), (1, 3, 1), (1, 7, 2), (2, -1, -1), (0, -1, -1), (1, 1, 0)])


class Program(unittest.TestCase):
    """Runs on made-up data: L0 of sparse attention is the rareness of the row's token, the others are noise or constant."""

    def setUp(self):
        self.rng = np.random.default_rng(3)
        work = tempfile.TemporaryDirectory()
        self.addCleanup(work.cleanup)
        self.work = pathlib.Path(work.name)
        self.rows = DOCUMENTS * LENGTH
        self.tokens = np.minimum(self.rng.geometric(0.2, size=self.rows), 15).astype(np.int32)
        for name in ("train", "heldout"):
            self.write_data(name)
        rare = np.argsort(np.argsort(-np.bincount(self.tokens, minlength=16)))[self.tokens]
        self.l0 = {"sparse": rare + 5, "batch": self.rng.integers(1, 40, size=self.rows), "topk": np.full(self.rows, 8)}
        for run, architecture in (("sparse", "attention"), ("batch", "batch_topk"), ("topk", "topk")):
            self.write_run(run, architecture, self.l0[run])

    def write_data(self, name):
        rows = self.rng.normal(size=(self.rows, WIDTH)).astype(np.float32)
        rows[7] *= 1000  # beyond max_norm
        document = np.repeat(np.arange(DOCUMENTS), LENGTH)
        positions = np.tile(np.arange(1, LENGTH + 1), DOCUMENTS).astype(np.int32)
        write_tensors(
            self.work / f"{name}.safetensors", activations=rows, doc=document, tokens=self.tokens, positions=positions
        )

    def write_run(self, name, architecture, l0, **options):
        run, codes = self.work / "runs" / name, self.work / "codes" / name
        (run / "model").mkdir(parents=True)
        (run / "model" / "cfg.json").write_text("{}")
        data = f'train = "{self.work}/train.safetensors"\nheld_out = "{self.work}/heldout.safetensors"\nmax_norm = 100.0\n'
        (run / "config.toml").write_text(f'[data]\n{data}[model]\narchitecture = "{architecture}"\n[training]\nsteps = 1\n')
        codes.mkdir(parents=True)
        shards = []
        for i, own in enumerate(np.split(l0, [self.rows // 3])):
            offsets = np.concatenate([[0], np.cumsum(own)]).astype(np.uint64)
            latents = np.zeros(offsets[-1], np.uint32)
            write_tensors(codes / f"{i}.safetensors", offsets=offsets, indices=latents, values=latents.astype(np.float32))
            shards.append({"file": f"{i}.safetensors"})
        index = {
            "format": "dynamic-sae.codes",
            "model": {"path": str(run / "model")},
            "data": {"rows": self.rows},
            "shards": shards,
        }
        index |= {
            "data_rows": [[0, self.rows]],
            "options": {"file_format": "safetensors", "latents": None, "top": None} | options,
        }
        (codes / "index.json").write_text(json.dumps(index))

    def program(self, *arguments):
        printed, code = io.StringIO(), None
        with mock.patch.object(sys, "argv", ["complexity.py", *map(str, arguments)]):
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                try:
                    complexity.main()
                except SystemExit as exit:
                    code = exit.code
        return printed.getvalue(), code

    def measured(self, *names, options=()):
        runs = [self.work / "runs" / name for name in names]
        return self.program(*runs, "--codes", self.work / "codes", "--draws", DRAWS, *options)

    def test_table_json_and_picture(self):
        title = "<a> | `b` & c"
        out, svg = self.work / "out.json", self.work / "out.svg"
        printed, code = self.measured("topk", "batch", "sparse", options=("--json", out, "--svg", svg, "--title", title))
        self.assertIsNone(code, printed)
        result = json.loads(out.read_text())
        self.assertEqual([method["name"] for method in result["methods"]], ["sparse attention", "TopK", "BatchTopK"])
        self.assertEqual((result["rows"], result["rows_left_out"], result["documents"]), (self.rows - 1, 1, DOCUMENTS))
        entry = next(entry for entry in result["measures"] if entry["name"].startswith("frequency"))
        kept = np.delete(np.arange(self.rows), 7)
        often = np.bincount(self.tokens)[self.tokens][kept]
        for name, run in (("sparse attention", "sparse"), ("BatchTopK", "batch")):
            self.assertAlmostEqual(entry["methods"][name]["rho"]["value"], ranks.spearman(self.l0[run][kept], often))
        self.assertNotIn("TopK", entry["methods"])
        self.assertIn("| TopK | 1 | 8.0 | 0.0 | 8 to 8 | L0 is constant: left out below |", printed)
        self.assertIn("No surprisals: --model was not given.", printed)
        self.assertIn("L0 of sparse attention falls with frequency of the token (log)", printed)
        self.assertIn(
            "follows 1 (frequency of the token (log)) of 2 measures more closely, up or down, than L0 of BatchTopK", printed
        )
        self.assertIn("\\<a\\> \\| \\`b\\` \\& c", printed)
        root = xml.etree.ElementTree.parse(svg).getroot()
        texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
        self.assertIn(title, texts)
        self.assertEqual(len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))), 2 * len(result["measures"]))
        again, code = self.program(out, "--svg", self.work / "again.svg")
        self.assertEqual((again, code, (self.work / "again.svg").read_text()), (printed, None, svg.read_text()))

    def test_nothing_but_a_constant(self):
        self.assertIn("L0 of every method is constant", self.measured("topk")[1])

    def test_seeds_of_a_recipe_are_one_method(self):
        self.write_run("other", "attention", self.l0["sparse"] + self.rng.integers(3, size=self.rows))
        out = self.work / "out.json"
        printed, code = self.measured("sparse", "other", "batch", options=("--json", out))
        self.assertIsNone(code, printed)
        first = json.loads(out.read_text())["methods"][0]
        self.assertEqual(first["runs"], ["sparse", "other"])
        self.assertGreater(first["between_seeds"], 0.8)
        config = self.work / "runs/other/config.toml"
        config.write_text(config.read_text().replace("steps = 1", "steps = 2"))
        self.assertIn("| sparse attention (other) | 1 |", self.measured("sparse", "other")[0])

    def test_wrong_input(self):
        self.write_run("cut", "attention", self.l0["sparse"], top=5)
        index = self.work / "codes/batch/index.json"
        index.write_text(index.read_text().replace(f"[[0, {self.rows}]]", "[[0, 5]]"))
        (self.work / "no.json").write_text("{}")
        cases = {
            "no codes": self.program(self.work / "runs/sparse", "--codes", self.work / "nowhere"),
            "--latents or --top": self.measured("cut"),
            "not the codes of the run's held-out rows": self.measured("batch"),
            "not the directory of a run": self.measured("nothing"),
            "two runs have one name": self.measured("sparse", "sparse"),
            "not written by --json": self.program(self.work / "no.json"),
            "--sae-eval": self.measured("sparse", options=("--sae-eval", self.work / "no-program")),
        }
        for words, (printed, code) in cases.items():
            self.assertTrue(str(code).startswith("error: ") and words in str(code), (words, code, printed))


class Sentences(unittest.TestCase):
    def test_they_follow_from_the_intervals(self):
        def entry(name, own, other, difference, complex):
            def told(value):
                return {"value": value, "low": value - 0.1, "high": value + 0.1}

            methods = {"A": {"rho": told(own)}, "B": {"rho": told(other)}}
            differences = {"differences": {"B": told(difference)}, "differences_given_norm": {}}
            return {"name": name, "control": False, "complex": complex, "methods": methods} | differences

        measures = [entry("u", 0.5, 0.2, 0.3, 1), entry("v", -0.3, -0.6, -0.3, 1), entry("w", 0.05, 0.0, 0.05, 0)]
        told = sentences({"methods": [{"name": n, "constant": False} for n in "AB"], "measures": measures})
        self.assertEqual(told[0], "L0 of A rises with u; it falls with v; it neither rises nor falls measurably with w.")
        self.assertIn("Of the 2 measures", told[1])
        self.assertIn("complex rows for 1 and smaller for 1.", told[1])
        self.assertIn("rho² = 0.25, so the two have 25 % of", told[2])
        self.assertIn("follows 1 (u) of 3 measures more closely, up or down, than L0 of B does, 1 (v) less closely", told[3])


if __name__ == "__main__":
    unittest.main()
