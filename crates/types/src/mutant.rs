// SPDX-License-Identifier: Apache-2.0
//! Planted bugs: what the simulator has to catch to be believed.
//!
//! Each [`Mutant`] breaks one rule of the engine at the place where the rule stands: the code there asks
//! [`planted`], and does the wrong thing where the answer is yes. Each is a real bug, of the kind that a tired
//! person writes: it loses data, shows wrong ones, leaks space, counts wrong or breaks a promise. A simulator that
//! runs with one of them and finds nothing wrong has a hole just there.
//!
//! Always holds:
//! - Without the feature `mutants` of this crate [`planted`] is a constant `false`, so no mutant is in what ships;
//!   no default feature turns it on, and the `varve` command does not build with it.
//! - With the feature at most one mutant is planted, by thread: a simulated world runs in one thread.
//! - Every variant is asked for somewhere (`tests/mutants.rs` looks).

use std::fmt;
use std::str::FromStr;

/// Whether this build can be made to carry a mutant.
pub const PLANTABLE: bool = cfg!(feature = "mutants");

/// Whether this mutant is planted: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
#[must_use]
pub const fn planted(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use planting::{plant, planted, strikes};

#[cfg(feature = "mutants")]
mod planting {
    use super::Mutant;
    use std::cell::Cell;

    /// Names the mutant that every thread begins with.
    const VARIABLE: &str = "VARVE_MUTANT";

    thread_local! {
        static PLANTED: Cell<Option<Mutant>> = Cell::new(from_environment());
        static STRIKES: Cell<u64> = const { Cell::new(0) };
    }

    #[allow(clippy::disallowed_methods, reason = "which bug a build with this feature has is for who runs it to say")]
    fn from_environment() -> Option<Mutant> {
        let name = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
        Some(name.parse().unwrap_or_else(|error| panic!("{VARIABLE}: {error}")))
    }

    /// Plants a mutant in this thread, or none, in the place of the one before. Begins to count [`strikes`] anew.
    pub fn plant(mutant: Option<Mutant>) {
        PLANTED.set(mutant);
        STRIKES.set(0);
    }

    /// Whether this mutant is planted in this thread.
    #[must_use]
    pub fn planted(mutant: Mutant) -> bool {
        let planted = PLANTED.get() == Some(mutant);
        if planted {
            STRIKES.set(STRIKES.get() + 1);
        }
        planted
    }

    /// How often the planted mutant was asked for since it was planted: 0 says that its code was never reached.
    #[must_use]
    pub fn strikes() -> u64 {
        STRIKES.get()
    }
}

/// A name that no mutant has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownMutant(String);

impl fmt::Display for UnknownMutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no mutant {:?}", self.0)
    }
}

impl std::error::Error for UnknownMutant {}

crate::catalogue::catalogue! {
    /// A bug that can be planted: the rule that it breaks, and what a user sees of it.
    Mutant:

    // The journal, and when a client is answered.
    /// A journal sync is told as done that never reached the device: a power cut takes what was flushed.
    SkipJournalSync = "skip-journal-sync",
    /// A sync that failed is tried again, and its success believed: what the kernel dropped meanwhile is gone at the next power cut.
    RetryFailedSync = "retry-failed-sync",
    /// `ack = process` answers before the kernel has the record: the death of the process takes answered writes.
    AnswerBeforeCommit = "answer-before-commit",
    /// The same for a change that had to wait (a part of a block, no room): it is answered before the batch is committed.
    AnswerWaitingBeforeCommit = "answer-waiting-before-commit",
    /// A flush hands the journal to the kernel and does not wait for stable media: a power cut takes what was flushed.
    FlushWithoutSync = "flush-without-sync",
    /// A write with FUA is answered like any other: a power cut takes it.
    FuaWithoutSync = "fua-without-sync",
    /// With a failed journal a flush is answered at once, not by the put: a crash takes what was flushed.
    FlushPastFailedJournal = "flush-past-failed-journal",
    /// The journal is trimmed when a put begins, not when its segment counts: a crash before the end of the put loses the layer.
    TrimBeforePut = "trim-before-put",
    /// A segment that is put frees the journal of all before it, though one of these is not put yet: a crash loses that one.
    TrimPastGap = "trim-past-gap",
    /// The checksum of a record's header is not looked at in replay: a torn header is taken for a change.
    IgnoreRecordChecksum = "ignore-record-checksum",
    /// A record at the end of the journal counts though its data are torn: blocks come back that nobody wrote.
    TakeTornTail = "take-torn-tail",
    /// Both superblocks of the journal are written to one place: a write of it that is spoilt leaves a trim of long ago.
    OneSuperblock = "one-superblock",
    /// A layer pins its first change, and not its lowest record: where only the first was carried, the trim passes the others.
    CarryPinsFirst = "carry-pins-first",
    /// What was carried is looked for where it was: another record stands there.
    CarryKeepsPlaces = "carry-keeps-places",

    // Recovery.
    /// Records are replayed in the order of their places in the ring, not of their sequence: where the ring has come round, writes are lost.
    ReplayInRingOrder = "replay-in-ring-order",
    /// Changes of an epoch behind its cut are replayed: writes that were lost once come back over newer ones.
    ReplayBeyondCut = "replay-beyond-cut",
    /// Replay goes on behind a missing change: of two writes in order the first is lost and the second is there.
    ReplayPastGap = "replay-past-gap",
    /// A change that is missing below a flushed-through is passed over: a volume is served that has lost flushed writes.
    ServePastLoss = "serve-past-loss",
    /// What recovery read from the journal is not flushed before it is served: a power cut then takes what a client may rely on.
    RecoverWithoutSync = "recover-without-sync",
    /// It is only flushed: what a failed sync of the process before left in memory, clean, is lost by the next power cut.
    RecoverTrustsMemory = "recover-trusts-memory",
    /// The manifest of an opening does not name the row of the epoch that ended: its segments are not found the next time.
    RecoverWithoutCut = "recover-without-cut",
    /// A new owner numbers its segments from the last checkpoint on, over those that count: old blocks are looked for in new segments.
    ReuseOrdinal = "reuse-ordinal",
    /// Opening a volume does not raise its epoch: what the opening before left behind is taken for its own, and is never swept.
    KeepEpoch = "keep-epoch",
    /// An error of the store, as recovery asks for the next segment, is taken for the end of the row: the segments from there on are lost.
    ErrorIsAbsence = "error-is-absence",
    /// Recovery asks a listing which segments there are: one that lags hides what counts.
    BelieveListing = "believe-listing",

    // Segments, and the proof of what is read.
    /// A segment counts though one before it does not: older blocks hide newer ones, and a crash loses the gap.
    CountOutOfOrder = "count-out-of-order",
    /// A segment does not list its holes: what was discarded comes back.
    DropHoles = "drop-holes",
    /// A segment does not list its size marks: after a crash the volume has its old size.
    DropSizeMarks = "drop-size-marks",
    /// Checksums are not bound to what the bytes are: whole bytes from the wrong place are taken for the right ones.
    UnboundChecksums = "unbound-checksums",
    /// Blocks from the store are not verified: a flipped bit goes to the guest.
    TrustStoredBlocks = "trust-stored-blocks",
    /// Scrubbing does not look whether an object is still named: what a checkpoint has deleted meanwhile is taken for lost.
    ScrubBelievesFirstLook = "scrub-believes-first-look",
    /// Blocks from the cache are not verified: a bit that flipped in RAM goes to the guest.
    TrustCachedBlocks = "trust-cached-blocks",
    /// Blocks from a cache device are not verified: what rots there goes to the guest.
    TrustSsdBlocks = "trust-ssd-blocks",
    /// The cache knows a block by ordinal and block, not by timeline too: a clone reads a block of its own for one of its origin.
    CacheForgetsTimeline = "cache-forgets-timeline",
    /// Whatever stands under a name that is taken counts as one's own: a manifest is accepted that says something else.
    TakeAnyObject = "take-any-object",

    // Writes.
    /// What a write does not cover of its first block becomes zero: a write of 512 bytes loses the 3,584 beside it.
    PartialWithoutRead = "partial-without-read",
    /// Two writes to parts of one block do not wait for each other: the later puts back what the other replaced.
    PartialsOverlap = "partials-overlap",
    /// Zeroing frees a block whole of which it covers the end: the beginning is lost.
    ZeroWholePartBlock = "zero-whole-part-block",
    /// A shrink leaves the rest of the last block: it shows when the volume grows again.
    ShrinkKeepsTail = "shrink-keeps-tail",
    /// Neither a shrink nor the growth after it clears what is cut: old data show when the volume grows again.
    GrowShowsOldData = "grow-shows-old-data",

    // Snapshots and clones.
    /// A snapshot is answered before its mark is on stable media: a crash takes it.
    SnapshotUnflushed = "snapshot-unflushed",
    /// A snapshot does not close its layer: it sees writes that came after it.
    SnapshotKeepsLayer = "snapshot-keeps-layer",
    /// Recovery takes a mark for a snapshot though a manifest has spoken of it: a deleted snapshot comes back.
    ResurrectSnapshot = "resurrect-snapshot",
    /// A clone begins with the base root alone, without the entries up to its boundary: it lacks the newest writes.
    CloneWithoutOverlay = "clone-without-overlay",
    /// A clone does not wait for the puts up to its boundary: it lacks the newest writes.
    CloneBeforePuts = "clone-before-puts",
    /// The hold for a clone is accepted some time after the clone exists: a crash between the two lets its origin free what it reads.
    HoldAfterClone = "hold-after-clone",
    /// A hold of an earlier epoch is dropped though its clone lives: the origin frees what the clone reads.
    DropHold = "drop-hold",
    /// Segments without live blocks go though a hold needs their indexes: after a crash the clone can not be opened.
    DropHeldIndexes = "drop-held-indexes",
    /// A deleted volume is removed though others were born from it: their data are gone.
    PurgeHeldOrigin = "purge-held-origin",
    /// A deleted volume is removed inside its window: it can not be brought back.
    PurgeInsideWindow = "purge-inside-window",
    /// A deleted volume is removed though it was brought back while its end waited: it is shown, and its objects are gone.
    PurgeBroughtBack = "purge-brought-back",
    /// A deleted volume whose manifest is lost ends, whoever was born from it: what a clone has inherited is gone.
    PurgeWithoutManifest = "purge-without-manifest",
    /// A deleted volume is brought back though its window is over: half of it may be gone.
    UndeleteAfterWindow = "undelete-after-window",

    // Cleaning.
    /// A segment is cleaned without what it has changed though a hold needs that: after a crash the clone can not be opened.
    CleanWithoutHistory = "clean-without-history",
    /// The table points to a bundle whose put has failed: what lived there is gone.
    CleanBeforePut = "clean-before-put",
    /// A bundle goes when the first of its segments does: what lives of the others is gone.
    DropSharedBundle = "drop-shared-bundle",
    /// The page of a segment that was moved is not written: after a crash it is looked for where it was.
    MoveWithoutPage = "move-without-page",
    /// The sweep takes what a bundle has taken over: pages in the store lead there still, and after a crash what lived there is gone.
    SweepLeft = "sweep-left",
    /// What a bundle has taken over is deleted at once: after a crash the table points there still.
    CleanDeletesAtOnce = "clean-deletes-at-once",
    /// What another process says that it has put is believed unseen: where it is not there, what lived there is gone.
    BelieveWorker = "believe-worker",
    /// An answer counts though the job was given up for lost, and its bundle deleted: what lived there is gone.
    TakeLateAnswer = "take-late-answer",

    // Rollback, and what is hidden.
    /// After a rollback the snapshots taken behind its point are listed still: they belong to a history that is hidden.
    RollbackKeepsLater = "rollback-keeps-later",
    /// A rollback hides a history before all of it is in the store: its undo lacks the newest writes.
    RollbackWithoutDrain = "rollback-without-drain",
    /// A hidden history is trimmed inside its window: it can not be shown again.
    TrimInsideWindow = "trim-inside-window",
    /// Trimming a hidden history does not ask who lists its snapshots: those from before a rollback vanish.
    TrimIgnoresListings = "trim-ignores-listings",
    /// Trimming a hidden history does not ask its kills again: space that nothing keeps is never given back.
    TrimForgetsKills = "trim-forgets-kills",
    /// The walk of a sweep begins at no root of a snapshot: blocks that only snapshots see are freed.
    SweepIgnoresSnapshots = "sweep-ignores-snapshots",
    /// The walk of a sweep begins at no root that another volume's clone holds: the clone's blocks are freed.
    SweepIgnoresHolds = "sweep-ignores-holds",
    /// A sweep is applied without one more manifest of what is shown: the one before the newest leads to what is freed.
    SweepWithoutManifest = "sweep-without-manifest",

    // Checkpoints: roots, kills, space.
    /// A node is freed unless a kept root r has birth < r, not ≤ r: a snapshot loses the nodes written for it.
    NodeBirthBeforeRoot = "node-birth-before-root",
    /// A root takes a number below that of the root before it: the rule that frees nodes frees those that it holds.
    BuildRootIntoPast = "build-root-into-past",
    /// A block is freed unless a kept boundary b has b < death, not ≤ death: a snapshot loses what was overwritten right behind it.
    FreeAtDeath = "free-at-death",
    /// A block of an ancestor that is overwritten is freed in the clone's own table: another block is lost, or no checkpoint can be made.
    KillAncestors = "kill-ancestors",
    /// A block that is overwritten before any checkpoint has merged it is never told as a kill: its space is never given back.
    DropOverlayKills = "drop-overlay-kills",
    /// The place that a leaf had in a sparse map object is not told as a kill when it moves: the object stays for ever.
    MoveNodeUnkilled = "move-node-unkilled",
    /// Kills that wait are not asked again when a snapshot goes: what only it kept is never given back.
    ForgetToReconsider = "forget-to-reconsider",
    /// When a snapshot goes only the first kills that it kept are asked again: what the others name is never given back.
    AskOnlyFirst = "ask-only-first",
    /// A run of kills stays in the manifest after it was asked: its blocks are freed twice, the second time in a segment that is gone.
    KeepAskedRuns = "keep-asked-runs",
    /// Strata are merged the newest first: older writes hide newer ones, and snapshots see what came after them.
    MergeOutOfOrder = "merge-out-of-order",
    /// A checkpoint tells changes as merged that are in no segment that counts: a crash passes them over in the journal.
    MergeBeforeCount = "merge-before-count",
    /// What a large discard cuts out of the map is not noted in the manifest: its space is never given back.
    DropReclaim = "drop-reclaim",
    /// What was worked off stays in the reclaim queue: its blocks and nodes are freed twice.
    ReclaimTwice = "reclaim-twice",
    /// What is worked off dies now, not when it was discarded: snapshots taken since keep what they never saw.
    ReclaimTooLate = "reclaim-too-late",
    /// Holes of a stratum are joined though there is a gap between them: blocks that nobody discarded are lost.
    JoinHolesAcrossGap = "join-holes-across-gap",
    /// A subtree is cut out though a discard covers only its beginning: the rest of it is lost.
    DetachHalfCovered = "detach-half-covered",
    /// A subtree is cut out though a discard begins inside it: what is in front is lost.
    DetachUnaligned = "detach-unaligned",

    // What stores answer.
    /// A wrong answer of a store is taken for damage in it: a read fails, though the object is whole.
    BelieveFirstAnswer = "believe-first-answer",

    // Rewinding.
    /// What died inside the rewind window is freed: moments between two roots have lost blocks.
    RewindFreesAtOnce = "rewind-frees-at-once",
    /// Nodes that only a root of the rewind window holds are freed: it leads to what is gone.
    RewindDropsRoots = "rewind-drops-roots",
    /// The index of a segment in the rewind window goes when nothing of it lives: its holes and sizes are forgotten.
    RewindDropsIndexes = "rewind-drops-indexes",
    /// The walk of a sweep begins at no root of a rewind window: what only the past reaches is freed.
    SweepIgnoresRewind = "sweep-ignores-rewind",
    /// A moment is brought back without a hold in its origin: what it needs goes with the window.
    RewindWithoutHold = "rewind-without-hold",
    /// A volume that is brought back has the size of the root before the moment: what was resized since is wrong.
    RewindIgnoresSize = "rewind-ignores-size",

    // Manifests, and what is deleted.
    /// Objects go after the manifest that stopped needing them, before the second: the one before it is no way back.
    DeleteBeforeSecondManifest = "delete-before-second-manifest",
    /// Coordination accepts a manifest before it is in the store: a crash between the two leaves a volume without one.
    AcceptBeforePut = "accept-before-put",
    /// A manifest is accepted without a look at epoch and writer: an owner that slept overwrites its successor's.
    BlindManifest = "blind-manifest",
    /// A volume's record is written without comparing its revision: a change by somebody else is lost.
    BlindRecordWrite = "blind-record-write",
    /// Nobody looks whether another cluster has taken the pool over: this one deletes what the other needs.
    IgnorePoolOwner = "ignore-pool-owner",
    /// The sweep of an opening deletes names of any epoch: what a checkpoint or a successor has just put is gone.
    SweepUnknownWriter = "sweep-unknown-writer",
    /// The sweep of an opening deletes segments above the boundary that a cut counts: the next opening is without them.
    SweepCountedRow = "sweep-counted-row",

    // The map's RAM.
    /// A node leaves RAM though the store may not have it yet: who needs it next finds nothing.
    EvictUnstored = "evict-unstored",
    /// A node is looked for only where manifests say: what a checkpoint under way has put and dropped is gone.
    ForgetFreshMaps = "forget-fresh-maps",
    /// A merge takes what it has begun to write for stored: what is not put yet leaves RAM.
    StoredBeforePut = "stored-before-put",

    // Import, flatten.
    /// An import shows the timeline with the lowest show number: what a rollback has hidden is back.
    ImportShowsLowest = "import-shows-lowest",
    /// An import does not ask for manifests behind the newest that is listed: a listing that lags takes it back in time.
    ImportTrustsListing = "import-trusts-listing",
    /// An import counts on changes that only the old node's journal has: the volume does not open.
    ImportKeepsPromises = "import-keeps-promises",
    /// A flattened volume forgets its ancestors though its snapshots lead to them: the snapshots can not be read.
    FlattenForgetsSnapshots = "flatten-forgets-snapshots",
    /// A flatten writes what it read though a guest has written there meanwhile: the guest's write is lost.
    FlattenOverwritesGuest = "flatten-overwrites-guest",

    // Mirrors and sessions.
    /// A change is answered before its mirror has it: the next owner does not.
    AnswerBeforeCopy = "answer-before-copy",
    /// Answers go on as soon as a mirror is lost, before coordination names it no more: it takes over without them.
    PartSilently = "part-silently",
    /// A mirror is named though the store does not have what came before its copy: whoever takes over lacks it.
    JoinUnput = "join-unput",
    /// What was promised because the mirror had it is not made stable when that is lost: a power cut takes it.
    PartUnflushed = "part-unflushed",
    /// Whoever fetches a copy does not fence its owner: it goes on to be answered.
    FetchWithoutFence = "fetch-without-fence",
    /// A node takes over with whatever copy it has, also an empty one of another process: what was acknowledged is gone.
    TakeWithAnyCopy = "take-with-any-copy",
    /// A node takes a volume over though its mirror was recorded as lost meanwhile: what came since is gone.
    TakeBlindly = "take-blindly",
    /// A node takes a volume over and forgets to take its copy in: what the store lacks is gone.
    TakeWithoutCopy = "take-without-copy",
    /// A node opens what another one owns by now: it is taken away from its owner.
    OpenOthers = "open-others",
    /// An owner that comes back does not ask its mirror, which may know more: what a power cut took is gone.
    ReopenAlone = "reopen-alone",
    /// What was adopted from a copy is not made stable: a power cut after the take-over takes it.
    AdoptUnsynced = "adopt-unsynced",
    /// The last change of a copy is not adopted: it was acknowledged, and is gone.
    AdoptLosesLast = "adopt-loses-last",
    /// A mirror is still named after the volume was opened anew, though its copy is of the past: it takes over with that.
    OpenKeepsMirror = "open-keeps-mirror",
    /// A mirror lets go of more than the store has: whoever takes over lacks it.
    ReleaseTooMuch = "release-too-much",
    /// A copy is begun anew for a question that was on its way for long: the copy of now, which is named, is gone.
    BeginLate = "begin-late",
    /// What an owner has put counts as safe though a mirror may have taken over: an edge forgets what is then lost.
    PutIsSafe = "put-is-safe",
    /// Every answer of a mirror is taken for one about all that was sent: changes are answered before it has them.
    AckAhead = "ack-ahead",
    /// A plain client is answered without a lease: it reads at an owner that was taken over.
    AnswerWithoutLease = "answer-without-lease",
    /// A mirror that takes over does not wait for the end of the lease that it gave: two nodes answer.
    ServeBesideLease = "serve-beside-lease",
    /// A flush does not wait until its mirror has it on stable media: what only that has left after a loss of power lacks it.
    FlushUnsyncedCopy = "flush-unsynced-copy",
    /// A mirror says that a copy is on stable media when it is not: what was flushed is gone there with the power.
    CopyUnsynced = "copy-unsynced",
    /// A mirror answers a change before the kernel has it: the end of its process takes it.
    CopyUncommitted = "copy-uncommitted",
    /// A node that opens a volume of its own gives up the copies that it has on disk of others: who needs them finds nothing.
    DropCopyTail = "drop-copy-tail",
    /// Copies on disk count as whole also after a loss of power: what their node's kernel had is gone.
    CopiesOutlivePower = "copies-outlive-power",
    /// A process takes over with a copy that one before it has left, and does not wait for the end of the leases of that: two nodes answer.
    RestartForgetsLease = "restart-forgets-lease",
    /// What is told to be safe is what was made, not what is stable: an edge forgets what is then lost.
    SafeBeforeSync = "safe-before-sync",
    /// The end of an epoch is noted one change too late: an edge forgets one that is lost.
    EndTooLate = "end-too-late",
}

impl Mutant {
    /// Those that few seeds meet: hundreds pass before one is caught, or nobody knows of one yet and a test of its own catches it. Not among those that are planted each day; a hunt for all of them has them
    /// too.
    pub const RARE: [Self; 8] = [
        Self::SweepIgnoresRewind,
        Self::TakeBlindly,
        Self::BeginLate,
        Self::PutIsSafe,
        Self::AckAhead,
        Self::FlushUnsyncedCopy,
        Self::CopyUnsynced,
        Self::RestartForgetsLease,
    ];
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(name: &str) -> Result<Self, UnknownMutant> {
        let found = Self::ALL.iter().find(|mutant| mutant.name() == name);
        found.copied().ok_or_else(|| UnknownMutant(name.to_owned()))
    }
}
