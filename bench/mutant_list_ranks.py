"""Seeded mistakes in what cuts a model for ranks, in what ranks say to each other, and in how pictures are shared."""

from __future__ import annotations

R, P, K = "passes/place_rules.py", "passes/place.py", "glmc/kernels/modulated_norm/"
E, B, C = "runtime/envelope.py", "runtime/broadcast.py", "runtime/collectives.py"
RANKS: tuple[tuple[str, str, str, str, str], ...] = (
    ("product of cut inputs not summed", R, "shape, partial=True, why=why)\n\n\n@rule(\"glmc.moe_experts\")",
     "shape, why=why)\n\n\n@rule(\"glmc.moe_experts\")", "place"),
    ("sum of experts forgotten", R, "return Value(x.dtype, x.shape, partial=True, why=gate_up.why | down.why)",
     "return x.like(x.shape)", "cut run:ranks_give and fx"),
    ("heads not divided", R, "        site.divide_keyword(\"heads\")\n", "", "place"),
    ("matrix by halves cut as one", P, "if way == _HALVES or any(key and key.endswith(_GATE_UP) for key in keys):",
     "if way == _HALVES:", "cut run:ranks_give and fx"),
    ("bias added on every rank", R, "if x.cut != weight.cut or bias is not None:", "if x.cut != weight.cut:", "place"),
    ("norm over cut channels", R, "if x.cut and x.cut.dim == -1:", "if x.cut and x.cut.dim == 9:", "place"),
    ("parts that do not follow one another", P, "or len(self.env[name].cut.parts) > 1]", "]", "place"),
    ("proof that allows anything", "passes/prove_placement.py", "if not worst <= LIMIT:", "if worst > 1e9:", "place"),
    ("stages not counted", E, "header.number, header.sequence, header.run", "0, header.sequence, header.run", "world"),
    ("shape not compared", E, "len(header.shape), *shape, header.length,", "0, *(0,) * 8, 0,", "world"),
    ("damage not seen", E, "zlib.crc32(data[:-4]) != crc or ", "", "envelope"),
    ("list longer than it says", B, "if at + sum(entry.nbytes for entry in entries) != header.length:", "if False:", "world"),
    ("values not looked at", B, "if name in looked_at and not faults:", "if False:", "world"),
    ("sum of pieces not compared", B, ".digest != total.digest():", ".digest == b\"\":", "world"),
    ("order of ranks", C, "return [tensor, other] if self.rank == 0 else [other, tensor]", "return [tensor, other]", "world"),
    ("wide sum forgotten", C, "wide = torch.float32 if self.size > 2 and", "wide = tensor.dtype if self.size > 2 and", "world"),
    ("rows that do not divide", "runtime/image/plan.py", "if self.total % self.ranks:", "if self.total < self.ranks:", "rows"),
    ("rows of the next rank", "runtime/image/plan.py", "return torch.arange(rank * each, (rank + 1) * each)",
     "return torch.arange((rank + 1) * each, (rank + 2) * each)", "rows"),
    ("factor of another picture", K + "triton.py", "picture = row // tokens", "picture = row % tokens",
     "triton:exam and modulated_norm"),
    ("eps dropped", K + "cpu.py", "None, None, eps)", "None, None, 1e-5)", "kernel:modulated_norm"),
    ("swapped factor and shift", K + "cpu.py", "torch.addcmul(shift.float(), normed, factor.float())",
     "torch.addcmul(factor.float(), normed, shift.float())", "kernel:modulated_norm"),
)
