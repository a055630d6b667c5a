"""Every cap on what a peer can make us store, queue, hash or wait for, each with its reason.

Law: a number that bounds a peer lives here and nowhere else. Numbers that a whole network must share and may vote on
live in the genesis parameters instead.
"""

FRAME_BYTES_MAX = 4 * 1024 * 1024
"""One WebSocket message. aiohttp's own default; a larger one closes the link with 1009."""

BLOCK_BYTES_MAX = 1024 * 1024
"""One block with its transactions: a quarter of a frame, so that a proposal and its justification fit one."""

TRANSACTION_BYTES_MAX = BLOCK_BYTES_MAX // 2
"""At most half a block for one transaction, so that nobody fills a block alone."""

BLOCK_TRANSACTIONS_MAX = 4096
"""About 0.4 s of signature checks on one core."""

TRANSFER_OUTPUTS_MAX = 256
"""Transfers under one signature; with 40 bytes each this stays near 10 KiB."""

ENVELOPE_PAYLOAD_BYTES_MAX = BLOCK_BYTES_MAX + 192 * 1024
"""The largest thing that one key signs is a dispatch: a block and 64 certificates of thirty signatures."""

GOSSIP_OBJECT_BYTES_MAX = 64 * 1024
"""An offer with all its models or a bid; transactions larger than this go straight to authorities."""

DISPATCH_BYTES_MAX = ENVELOPE_PAYLOAD_BYTES_MAX + 256
"""What authorities without links say to each other by gossip, proposals with their blocks included."""

DISPATCH_BALLOTS_MAX = 4
"""An authority has one VOTE and one FINAL in a view."""

OWN_STATEMENTS_MAX = 16
"""Statements of the asker in one answer about its standing: what it signed last."""

EARLIER_PARTS_MAX = 64
"""Providers before the last one in a receipt file: more than any buyer tries for one request."""

OPEN_JOBS_MAX = 128
"""Jobs named in one comparison of open jobs, on either side: 110 bytes each."""

AUCTION_WINDOW_MS_MAX = 10_000
"""An auction keeps a job waiting for two windows at most; gossip reaches everybody in two seconds."""

REPLICAS_MAX = 16
"""Providers that do the same job for one buyer to be compared: each holds a channel and an output."""

AUCTION_SEALS_MAX = 64
"""Providers that take part in one auction, the first that come: more would hardly be cheaper."""

QUOTES_HELD_MAX = 256
"""Quotes of one provider that bind it or wait to be revealed: 500 bytes each."""

BATCH_MESSAGES_MAX = 64
BATCH_BYTES_MAX = 64 * 1024
"""A frame carries at most so many small messages: beyond 64 batching gains little and delays the first."""

ANNOUNCED_IDS_MAX = 256
"""Ids in one announcement or pull: 8 KiB."""

PEER_RECORDS_MAX = 32
"""Peer addresses in one exchange."""

ADDRESSES_PER_NODE_MAX = 4
ADDRESS_BYTES_MAX = 255

MODELS_PER_OFFER_MAX = 64
"""An offer with 64 models stays below 32 KiB."""

SETTINGS_BYTES_MAX = 1024
"""A runtime's settings with the list of processor features."""

TEXT_BYTES_MAX = 256
"""Names, regions, reasons: what people read on one line."""

HISTORY_ENTRIES_MAX = 64
"""Lines kept for one job: more than any job goes through, and with two texts each below 48 KiB."""

JOB_INPUT_BYTES_MAX = 1024 * 1024
"""A prompt or an input tensor, sent over the buyer's link to one provider. Never gossiped."""

SCHEMA_BYTES_MAX = 16 * 1024
"""A JSON schema for an answer: some hundred named properties."""

GRAMMAR_BYTES_MAX = 16 * 1024
"""A grammar for an answer, in GBNF: some hundred rules."""

LOGPROBS_MAX = 20
"""Alternatives named beside each token: about a kilobyte, so that a chunk of 256 tokens still fits."""

CHUNK_PAYLOAD_BYTES_MAX = 256 * 1024
"""Output in one chunk: half of what one key signs at once."""

CHUNK_UNITS_MAX = 256
"""Work units in one chunk: this bounds what a provider has at risk."""

LANES_PER_CHANNEL = 64
"""Concurrent jobs on one payment channel."""

RECEIPT_PROOF_HASHES_MAX = 64
"""Merkle mountain range over at most 2^48 receipts: depth and peaks together stay below this."""

AUTHORITIES_MAX = 30
"""Simplex exchanges n² messages a view; beyond thirty known authorities another design is due."""

SUCCESSIONS_MAX = 4096
"""Changes of the set that a proof shows since the genesis: one a day for eleven years, at most 40 MB."""

JUSTIFICATION_CERTIFICATES_MAX = 64
"""Skip certificates beside one proposal; gaps beyond this are pulled by (height, view)."""

VIEWS_AHEAD_MAX = 8
"""Votes are kept only for views up to this far ahead; certificates for any view."""

BLOCKS_PER_RESPONSE_MAX = 16
"""Blocks in one catch-up answer; further bounded by ``FRAME_BYTES_MAX``."""

SNAPSHOT_CHUNK_BYTES_MAX = 1024 * 1024
"""A chunk of a snapshot travels, is hashed and is stored in one go: as much as a block, which is one of its chunks."""
SNAPSHOT_CHUNKS_MAX = 4096
"""Four gigabytes: some fifty million accounts. What a lying peer can make a new node fetch before the root tells."""

PENDING_PER_SENDER_MAX = 64
PENDING_BYTES_PER_SENDER_MAX = 1024 * 1024
PENDING_TOTAL_MAX = 20_000
PENDING_BYTES_TOTAL_MAX = 64 * 1024 * 1024
"""Mempool bounds: 20,000 transactions of 200 bytes are about 5 s of work at full speed; 64 MiB are as many blocks."""

REFUSALS_SHOWN_MAX = 64
"""Reasons listed by one quote."""

LINK_QUEUE_MESSAGES_MAX = 4096
LINK_QUEUE_BYTES_MAX = 2 * FRAME_BYTES_MAX
"""What may wait for one slow peer: two full frames. Sixty-four stalled links then hold at most half a gigabyte."""

PEERS_STORED_MAX = 1024
"""Node records kept on disk: 32 exchanges' worth, below a megabyte."""

DIAL_TARGETS_MAX = 256
"""Nodes that one node tries to stay linked to: authorities, seeds, and the providers of open jobs."""

PENDING_CONNECTIONS_MAX = 128
"""Accepted connections that have not yet greeted us. Each costs a TLS handshake (3 ms) and a socket."""

NEIGHBOURS_REMEMBERED_MAX = 4096
"""Addresses whose rate of new connections is remembered; a quarter of a megabyte."""

GOSSIP_OBJECTS_MAX = 20_000
GOSSIP_OBJECT_BYTES_TOTAL_MAX = 64 * 1024 * 1024
"""Live gossip objects whose bodies a node serves; the next to expire go first."""

GOSSIP_SEEN_MAX = 65_536
"""Ids and envelope hashes remembered, 5 MiB: three times the live objects."""

GOSSIP_PULLS_MAX = 4096
GOSSIP_ANNOUNCERS_MAX = 8
"""Objects awaited at once, and peers remembered as holders of each: eight silent ones cost eight timeouts."""

GOSSIP_LIFETIME_MS_MAX = 3_600_000
"""No object outlives an hour here, whatever expiry its sender wrote: what should last is announced again."""

MODEL_FILES_MAX = 64
MODEL_PIECES_MAX = 65_536
"""Files of a model and pieces of a file that can be asked for: 64 GiB by the mebibyte."""

PIECE_MESSAGE_BYTES_MAX = 1024
"""A question for a piece takes fifty bytes, a refusal its reason."""

PIECE_CONNECTIONS_MAX = 16
PIECE_CONNECTIONS_PER_PEER_MAX = 4
"""Connections that carry pieces from this node, each with a thread and a mebibyte; one peer leaves others room."""
