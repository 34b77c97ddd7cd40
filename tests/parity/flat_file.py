"""The engine's files from Python, written from their description (src/io/flat_file.h, src/io/layout.h, src/core/hash.h)
and not from the code that reads them: that both agree is part of what the parity check shows. Standard library + numpy."""
import struct

import numpy as np

ALIGN = 256
CHUNK = 16 << 20
MASK = (1 << 64) - 1
LINEARS = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
F32, F16, BF16 = 0, 1, 2
CONFIG_INTS = ("dim", "ffn", "layers", "heads", "kv_heads", "head_dim", "vocab", "max_seq", "tied", "bos", "eos")

# ---- the 64-bit checksum ---------------------------------------------------------------------------------------------


def _root_bits(prime):
    """The first 64 bits of the fractional part of the square root of a prime."""
    import math
    return math.isqrt(prime << 128) & MASK


_START = [_root_bits(p) for p in (2, 3, 5, 7)]
_LANE = [_root_bits(p) | 1 for p in (11, 13, 17, 19)]
_STEP, _ADD = _root_bits(23) | 1, _root_bits(29) | 1


def _mix(x):
    x = (x ^ (x >> 32)) * _LANE[0] & MASK
    x = (x ^ (x >> 29)) * _STEP & MASK
    return x ^ (x >> 32)


def digest(data):
    padded = bytes(data) + bytes(-len(data) % 32)
    words = np.frombuffer(padded, "<u8")
    x = _mix((len(data) + _ADD) & MASK)
    for i in range(4):
        lane, factor = _START[i], _LANE[i]
        for word in words[i::4].tolist():
            lane = (lane ^ word) * factor & MASK
            lane = (((lane << 32) | (lane >> 32)) * _STEP + _ADD) & MASK
        x = (_mix(x ^ lane) + _ADD) & MASK
    return x


# ---- container -------------------------------------------------------------------------------------------------------


def _round_up(n):
    return (n + ALIGN - 1) // ALIGN * ALIGN


def _payload_offset(payload_bytes):
    return _round_up(1024 + 8 * ((payload_bytes + CHUNK - 1) // CHUNK))


def _write(path, magic, fields, tensors):
    """fields: the bytes from slot 16 on; tensors: the payload's bytes, tensor by tensor. Returns the file's hash."""
    payload = bytearray()
    for data in tensors:
        payload += bytes(_round_up(len(payload)) - len(payload))
        payload += data
    table = b"".join(struct.pack("<Q", digest(payload[i:i + CHUNK])) for i in range(0, len(payload), CHUNK))
    table += bytes(_payload_offset(len(payload)) - 1024 - len(table))
    head = magic + struct.pack("<iQQ", 1, len(payload), digest(table))
    head += bytes(64 - len(head)) + fields
    head += bytes(4 * 254 - len(head))
    file_hash = digest(head)
    with open(path, "wb") as f:
        f.write(head + struct.pack("<Q", file_hash) + table + payload)
    return file_hash


def _read(path, magic):
    """Returns (file hash, bytes from slot 16 on, payload); every checksum is compared."""
    with open(path, "rb") as f:
        data = f.read()
    found, version, size, table_hash = struct.unpack_from("<4siQQ", data)
    assert found == magic and version == 1, f"{path}: {found} version {version}"
    start = _payload_offset(size)
    assert len(data) == start + size, f"{path}: {len(data)} bytes, expected {start + size}"
    file_hash = digest(data[:4 * 254])
    assert file_hash == struct.unpack_from("<Q", data, 4 * 254)[0], f"{path}: header checksum"
    assert digest(data[1024:start]) == table_hash, f"{path}: checksum of the table"
    payload = data[start:]
    for i in range(0, size, CHUNK):
        assert digest(payload[i:i + CHUNK]) == struct.unpack_from("<Q", data, 1024 + i // CHUNK * 8)[0], f"{path}: checksum of chunk {i}"
    return file_hash, data[64:], payload


# ---- number formats --------------------------------------------------------------------------------------------------


def to_bf16(x):
    """f32 array -> the f32 array of its values rounded to bf16, to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def round_to(x, dtype):
    if dtype == F32:
        return np.ascontiguousarray(x, np.float32)
    return x.astype(np.float16).astype(np.float32) if dtype == F16 else to_bf16(x)


def _encode(x, dtype):
    if dtype == F32:
        return np.ascontiguousarray(x, "<f4").tobytes()
    if dtype == F16:
        return np.ascontiguousarray(x, "<f2").tobytes()
    return (to_bf16(x).view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


# ---- base model (.bin) -----------------------------------------------------------------------------------------------


def linear_shapes(c):
    q, kv = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
    return {"wq": (q, c["dim"]), "wk": (kv, c["dim"]), "wv": (kv, c["dim"]), "wo": (c["dim"], q),
            "w_gate": (c["ffn"], c["dim"]), "w_up": (c["ffn"], c["dim"]), "w_down": (c["dim"], c["ffn"])}


def tensor_names(c):
    names = ["embed"]
    for n in range(c["layers"]):
        names += [f"layers.{n}.{part}" for part in ("attn_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w_gate", "w_up", "w_down")]
    return names + ["norm"] + ([] if c["tied"] else ["head"])


def write_base(path, config, dtype, weights):
    """weights: name -> f32 array. The norms are stored in f32 whatever dtype is."""
    fields = struct.pack("<12i2d", *(int(config[k]) for k in CONFIG_INTS), dtype, config["rope_theta"], config["norm_eps"])
    tensors = [_encode(weights[n], F32 if "norm" in n else dtype) for n in tensor_names(config)]
    return _write(path, b"IRQB", fields, tensors)


def read_base(path):
    """Returns (config, name -> f32 weights)."""
    _, head, payload = _read(path, b"IRQB")
    values = struct.unpack_from("<12i2d", head)
    c = dict(zip(CONFIG_INTS, values)) | {"rope_theta": values[12], "norm_eps": values[13]}
    c["tied"] = bool(c["tied"])
    weights, shapes, at = {}, linear_shapes(c), 0
    for name in tensor_names(c):
        norm = "norm" in name
        shape = (c["dim"],) if norm else shapes.get(name.split(".")[-1], (c["vocab"], c["dim"]))
        dtype = F32 if norm else values[11]
        at = _round_up(at)
        a = np.frombuffer(payload, {F32: "<f4", F16: "<f2", BF16: "<u2"}[dtype], int(np.prod(shape)), at)
        at += a.nbytes
        wide = (a.astype(np.uint32) << np.uint32(16)).view(np.float32) if dtype == BF16 else a.astype(np.float32)
        weights[name] = wide.reshape(shape)
    assert at == len(payload), f"{path}: {len(payload)} bytes of tensors, expected {at}"
    return c, weights


# ---- adapter (.lora) -------------------------------------------------------------------------------------------------


def write_adapter(path, method, rank, alpha, targets, tile, base_hash, arrays):
    """arrays: name -> f32 matrix; targets: bit i = LINEARS[i]."""
    directory = "".join(f"{n} f32 {a.shape[0]} {a.shape[1]}\n" for n, a in arrays.items()).encode()
    fields = struct.pack("<32s3i2dQ2q", method.encode(), rank, targets, int(tile), alpha, 0.0, base_hash, len(directory), 0)
    return _write(path, b"IRQA", fields, [directory, b""] + [_encode(a, F32) for a in arrays.values()])


# ---- quantized base (.irq) -------------------------------------------------------------------------------------------

# Paper Tables 11 to 13.
LEVELS = {
    4: (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    3: (-1.0, -0.4786292016506195, -0.217141792178154, 0.0, 0.16093020141124725, 0.33791524171829224, 0.5626170039176941, 1.0),
    2: (-1.0, -0.25256848335266113, 0.2525685131549835, 1.0),
}


def _dequantize(part, shape, bits, tau):
    """Paper Eqs 3 and 10 in fp32: level * s_hat + tau_hat, s_hat = map[code] * group + offset, tau_hat = map[code] * group."""
    count = shape[0] * shape[1]
    stream = np.unpackbits(part["codes"])[:count * bits].reshape(count, bits)  # most significant bit first
    codes = stream @ (1 << np.arange(bits)[::-1])
    block = np.arange(count) // 64
    group = np.arange((count + 63) // 64) // 256
    scale = part["map"][part["scale_codes"]] * part["scale_groups"][group] + part["scale_offset"]
    w = np.array(LEVELS[bits], np.float32)[codes] * scale[block]
    if tau:
        w = w + (part["map"][part["tau_codes"]] * part["tau_groups"][group])[block]
    assert w.dtype == np.float32
    return w.reshape(shape)


def read_irq(path):
    """Returns (hash of the file, hash of its source, bits, name -> f32 weights, the linears dequantized)."""
    file_hash, head, payload = _read(path, b"IRQQ")
    values = struct.unpack_from("<12i2d7idQ", head)
    c = dict(zip(CONFIG_INTS, values))
    dtype, (kind, bits, block, scale, shift, _, _), source = values[11], values[14:21], values[22]
    assert (kind, block, scale) == (0, 64, 1), "NF codes in blocks of 64 with double quantized scales"
    at = 0

    def take(kind, count):
        nonlocal at
        at = _round_up(at)
        a = np.frombuffer(payload, kind, count, at)
        at += a.nbytes
        return a

    def plain(kind, count):
        a = take({F32: "<f4", F16: "<f2", BF16: "<u2"}[kind], count)
        return (a.astype(np.uint32) << np.uint32(16)).view(np.float32) if kind == BF16 else a.astype(np.float32)

    weights, parts, shapes = {}, {}, linear_shapes(c)
    for name in tensor_names(c):
        leaf = name.split(".")[-1]
        if leaf not in shapes:
            weights[name] = plain(F32 if "norm" in name else dtype, c["dim"] if "norm" in name else c["vocab"] * c["dim"])
            if "norm" not in name:
                weights[name] = weights[name].reshape(c["vocab"], c["dim"])
            continue
        count = shapes[leaf][0] * shapes[leaf][1]
        blocks = (count + 63) // 64
        groups = (blocks + 255) // 256
        p = {"codes": take("u1", (count * bits + 7) // 8), "scale_codes": take("u1", blocks),
             "scale_groups": take("<f4", groups), "scale_offset": take("<f4", 1)}
        if shift == 1:
            p |= {"tau_codes": take("u1", blocks), "tau_groups": take("<f4", groups)}
        parts[name] = p
    take("<f4", 14 * c["layers"])  # entropy
    table = take("<f4", 256)
    assert at == len(payload), f"{path}: {len(payload) - at} bytes behind the last tensor"
    for name, p in parts.items():
        weights[name] = _dequantize(p | {"map": table}, shapes[name.split(".")[-1]], bits, shift == 1)
    return file_hash, source, bits, weights
