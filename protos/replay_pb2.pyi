from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Segment(_message.Message):
    __slots__ = ("episode_id", "first_step", "frames", "frame_sizes", "actions", "rewards", "flags", "versions", "item_step", "item_length", "r_t", "discount_t", "td_abs")
    EPISODE_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    FRAME_SIZES_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ITEM_STEP_FIELD_NUMBER: _ClassVar[int]
    ITEM_LENGTH_FIELD_NUMBER: _ClassVar[int]
    R_T_FIELD_NUMBER: _ClassVar[int]
    DISCOUNT_T_FIELD_NUMBER: _ClassVar[int]
    TD_ABS_FIELD_NUMBER: _ClassVar[int]
    episode_id: int
    first_step: int
    frames: bytes
    frame_sizes: bytes
    actions: bytes
    rewards: bytes
    flags: bytes
    versions: bytes
    item_step: bytes
    item_length: bytes
    r_t: bytes
    discount_t: bytes
    td_abs: bytes
    def __init__(self, episode_id: _Optional[int] = ..., first_step: _Optional[int] = ..., frames: _Optional[bytes] = ..., frame_sizes: _Optional[bytes] = ..., actions: _Optional[bytes] = ..., rewards: _Optional[bytes] = ..., flags: _Optional[bytes] = ..., versions: _Optional[bytes] = ..., item_step: _Optional[bytes] = ..., item_length: _Optional[bytes] = ..., r_t: _Optional[bytes] = ..., discount_t: _Optional[bytes] = ..., td_abs: _Optional[bytes] = ...) -> None: ...

class InsertRequest(_message.Message):
    __slots__ = ("writer", "sequence", "segment", "origin", "transferred")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_FIELD_NUMBER: _ClassVar[int]
    writer: str
    sequence: int
    segment: Segment
    origin: str
    transferred: bool
    def __init__(self, writer: _Optional[str] = ..., sequence: _Optional[int] = ..., segment: _Optional[_Union[Segment, _Mapping]] = ..., origin: _Optional[str] = ..., transferred: _Optional[bool] = ...) -> None: ...

class InsertReply(_message.Message):
    __slots__ = ("acknowledged", "credit_left", "leaving")
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_LEFT_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    acknowledged: int
    credit_left: int
    leaving: bool
    def __init__(self, acknowledged: _Optional[int] = ..., credit_left: _Optional[int] = ..., leaving: _Optional[bool] = ...) -> None: ...

class Counts(_message.Message):
    __slots__ = ("inserted", "sampled", "stored", "total_priority", "bytes", "dropped_updates", "transferred", "resident_bytes")
    INSERTED_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_UPDATES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    inserted: int
    sampled: int
    stored: int
    total_priority: float
    bytes: int
    dropped_updates: int
    transferred: int
    resident_bytes: int
    def __init__(self, inserted: _Optional[int] = ..., sampled: _Optional[int] = ..., stored: _Optional[int] = ..., total_priority: _Optional[float] = ..., bytes: _Optional[int] = ..., dropped_updates: _Optional[int] = ..., transferred: _Optional[int] = ..., resident_bytes: _Optional[int] = ...) -> None: ...

class Limiter(_message.Message):
    __slots__ = ("samples_per_insert", "min_size", "min_diff", "max_diff", "diff", "stored")
    SAMPLES_PER_INSERT_FIELD_NUMBER: _ClassVar[int]
    MIN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MIN_DIFF_FIELD_NUMBER: _ClassVar[int]
    MAX_DIFF_FIELD_NUMBER: _ClassVar[int]
    DIFF_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    samples_per_insert: float
    min_size: int
    min_diff: float
    max_diff: float
    diff: float
    stored: int
    def __init__(self, samples_per_insert: _Optional[float] = ..., min_size: _Optional[int] = ..., min_diff: _Optional[float] = ..., max_diff: _Optional[float] = ..., diff: _Optional[float] = ..., stored: _Optional[int] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("counts", "insert_credit", "limiter")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    INSERT_CREDIT_FIELD_NUMBER: _ClassVar[int]
    LIMITER_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    insert_credit: int
    limiter: Limiter
    def __init__(self, counts: _Optional[_Iterable[int]] = ..., insert_credit: _Optional[int] = ..., limiter: _Optional[_Union[Limiter, _Mapping]] = ...) -> None: ...

class SampleReply(_message.Message):
    __slots__ = ("counts", "keys", "probability", "a_tm1", "r_t", "discount_t", "frames", "draw_bytes")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    A_TM1_FIELD_NUMBER: _ClassVar[int]
    R_T_FIELD_NUMBER: _ClassVar[int]
    DISCOUNT_T_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    DRAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    counts: Counts
    keys: bytes
    probability: bytes
    a_tm1: bytes
    r_t: bytes
    discount_t: bytes
    frames: bytes
    draw_bytes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, counts: _Optional[_Union[Counts, _Mapping]] = ..., keys: _Optional[bytes] = ..., probability: _Optional[bytes] = ..., a_tm1: _Optional[bytes] = ..., r_t: _Optional[bytes] = ..., discount_t: _Optional[bytes] = ..., frames: _Optional[bytes] = ..., draw_bytes: _Optional[_Iterable[int]] = ...) -> None: ...

class UpdatePrioritiesRequest(_message.Message):
    __slots__ = ("keys", "td_abs")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    TD_ABS_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    td_abs: bytes
    def __init__(self, keys: _Optional[bytes] = ..., td_abs: _Optional[bytes] = ...) -> None: ...

class UpdatePrioritiesReply(_message.Message):
    __slots__ = ("dropped",)
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    dropped: int
    def __init__(self, dropped: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("taken", "segments")
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    taken: int
    segments: int
    def __init__(self, taken: _Optional[int] = ..., segments: _Optional[int] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("segments", "next", "left")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[InsertRequest]
    next: int
    left: int
    def __init__(self, segments: _Optional[_Iterable[_Union[InsertRequest, _Mapping]]] = ..., next: _Optional[int] = ..., left: _Optional[int] = ...) -> None: ...

class SetLimitedRequest(_message.Message):
    __slots__ = ("limited",)
    LIMITED_FIELD_NUMBER: _ClassVar[int]
    limited: bool
    def __init__(self, limited: _Optional[bool] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("counts", "capacity", "insert_credit", "limited", "selector", "frame_shape", "dtype", "stack", "limiter", "limiter_age", "capacity_bytes")
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    INSERT_CREDIT_FIELD_NUMBER: _ClassVar[int]
    LIMITED_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    FRAME_SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STACK_FIELD_NUMBER: _ClassVar[int]
    LIMITER_FIELD_NUMBER: _ClassVar[int]
    LIMITER_AGE_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    counts: Counts
    capacity: int
    insert_credit: int
    limited: bool
    selector: str
    frame_shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    stack: int
    limiter: Limiter
    limiter_age: float
    capacity_bytes: int
    def __init__(self, counts: _Optional[_Union[Counts, _Mapping]] = ..., capacity: _Optional[int] = ..., insert_credit: _Optional[int] = ..., limited: _Optional[bool] = ..., selector: _Optional[str] = ..., frame_shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., stack: _Optional[int] = ..., limiter: _Optional[_Union[Limiter, _Mapping]] = ..., limiter_age: _Optional[float] = ..., capacity_bytes: _Optional[int] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotReply(_message.Message):
    __slots__ = ("items", "bytes_written", "seconds")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    items: int
    bytes_written: int
    seconds: float
    def __init__(self, items: _Optional[int] = ..., bytes_written: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...
