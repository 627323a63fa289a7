// SPDX-License-Identifier: Apache-2.0
//! Rare branches: situations that a run of the simulator has to reach before it proves anything about them.
//!
//! The code of a [`Branch`] is right or wrong only where it is reached, and what is rare in a workload is rare in its proofs: so the code
//! says that it was there ([`reached`]), and the simulator tells at the end how often that was, also of what was never reached. A branch that
//! every write or read comes through has no place here. Source: `CODE_PROBE` of FoundationDB, the coverage marks of TigerBeetle.
//!
//! Always holds:
//! - Without the feature `mutants` of this crate [`reached`] does nothing and keeps nothing, so what ships pays nothing for it.
//! - With the feature each thread counts for itself: a simulated world runs in one thread. What is counted changes nothing that the code does.
//! - Every variant is reported somewhere (`tests/branches.rs` looks).

use std::fmt;

#[cfg(not(feature = "mutants"))]
pub use shipped::{reached, reached_if, take_counts};

#[cfg(not(feature = "mutants"))]
mod shipped {
    use super::Branch;

    /// Says that a branch is gone through: of no effect, in this build.
    #[inline(always)]
    pub const fn reached(_branch: Branch) {}

    /// Says that a branch is gone through if the condition holds: of no effect, in this build.
    #[inline(always)]
    pub const fn reached_if(_condition: bool, _branch: Branch) {}

    /// How often each branch was gone through: of none it is known, in this build.
    #[must_use]
    pub const fn take_counts() -> Vec<(Branch, u64)> {
        Vec::new()
    }
}

#[cfg(feature = "mutants")]
pub use counting::{reached, reached_if, take_counts};

#[cfg(feature = "mutants")]
mod counting {
    use super::Branch;
    use std::cell::Cell;

    thread_local! {
        static COUNTS: [Cell<u64>; Branch::ALL.len()] = const { [const { Cell::new(0) }; Branch::ALL.len()] };
    }

    /// Says that a branch is gone through.
    pub fn reached(branch: Branch) {
        COUNTS.with(|counts| counts[branch as usize].update(|count| count + 1));
    }

    /// Says that a branch is gone through if the condition holds.
    pub fn reached_if(condition: bool, branch: Branch) {
        if condition {
            reached(branch);
        }
    }

    /// How often each branch was gone through in this thread since this was asked last; all begin at 0 again.
    #[must_use]
    pub fn take_counts() -> Vec<(Branch, u64)> {
        COUNTS.with(|counts| Branch::ALL.iter().map(|branch| (*branch, counts[*branch as usize].take())).collect())
    }
}

crate::catalogue::catalogue! {
    /// A rare branch: the situation in which it is reached, and what is done there.
    Branch:

    // The journal: written.
    /// A record does not fit into what is left of the lap: a pad fills the rest, and the record begins the next lap.
    JournalPad = "journal-pad",
    /// What is left of the lap is less than the pad itself may need: nothing is written there, and the reader finds the next lap without a pad.
    JournalTightLap = "journal-tight-lap",
    /// A record ends where the lap ends, inside a batch: the batch ends there too.
    JournalFullLap = "journal-full-lap",
    /// The disk refuses the records of a batch: the journal has failed, and is appended to no more.
    JournalWriteFails = "journal-write-fails",
    /// A sync of the journal fails: nobody knows what is on stable media, so the journal has failed and no second sync is tried.
    JournalSyncFails = "journal-sync-fails",
    /// The superblock with a new trim can not be written or synced: the journal has failed, and the old trim stays in force.
    JournalTrimFails = "journal-trim-fails",
    /// A trim would give back less room than the records take that have to tell what it passes: it is put off until more is in the store.
    TrimPutOff = "trim-put-off",
    /// Old records hold up the trim: they are written once more at the head, and the trim passes their first place.
    RecordsCarried = "records-carried",
    /// Old records hold up the trim, and going round would give back too little: writers wait for the store.
    CarryPutOff = "carry-put-off",
    /// A step of carrying ends early: there is room for no more copies.
    CarryWithoutRoom = "carry-without-room",
    /// What is carried is of a timeline that is not open.
    TailCarried = "tail-carried",
    /// What was read of the journal is elsewhere by now: it is looked up again.
    PlaceMoved = "place-moved",

    // The journal: read after a start.
    /// One of the two superblocks is damaged: the other may be the older one, so records are looked for in two laps.
    SuperblockDamaged = "superblock-damaged",
    /// A record stands a lap or more behind the trim that was read: the superblock that is damaged was the newer one.
    JournalSecondLap = "journal-second-lap",
    /// A record stands behind a stretch that holds none: a power cut has kept a later batch and lost an earlier one, or bytes went bad.
    JournalHole = "journal-hole",
    /// A record's header is whole and its data are not: a power cut has torn the write, or its bytes went bad, and the record counts as not there.
    TornRecord = "torn-record",

    // Writes, and what they wait for.
    /// The journal has failed and a client flushes: the flush is answered once all before it is in segments that count.
    FlushByPut = "flush-by-put",
    /// The journal has failed and a change is made: it is in RAM alone, and is answered once its segment counts.
    WriteByPut = "write-by-put",
    /// The journal has no room, in its ring or within what may be unsynced: a change waits for a sync, or for puts that let the trim move on.
    WaitForJournal = "wait-for-journal",
    /// Layers have all the RAM that they may have: a change waits until a put frees some.
    WaitForRam = "wait-for-ram",
    /// No put frees RAM for a while: blocks of a sealed layer that are on stable media give up their bytes for their place in the journal.
    GivenUpToJournal = "given-up-to-journal",
    /// A read finds a block whose bytes were given up: they come from the journal.
    ReadFromJournal = "read-from-journal",
    /// Another change of the same block is being read and completed: this one waits its turn.
    BlockBusy = "block-busy",
    /// A write waited for its turn, and meanwhile the volume was made smaller: the write lies beyond its end now, and is refused.
    CutMeanwhile = "cut-meanwhile",
    /// A discard up to the end of the volume waited for its turn, and meanwhile the volume has grown: its last block is no longer the discard's alone.
    GrownMeanwhile = "grown-meanwhile",

    // Layers become segments.
    /// A layer was overwritten again and again: it is sealed for what came in, though it does not hold much.
    SealByOverwrite = "seal-by-overwrite",
    /// A layer has very many runs: it is sealed so that its index stays small, though it holds few blocks.
    SealByRuns = "seal-by-runs",
    /// A layer is as old as the settings allow: it is sealed though few have written to it.
    SealByAge = "seal-by-age",
    /// A layer holds up the trim of the journal, or RAM is short: it is sealed for others to have room.
    SealForRoom = "seal-for-room",
    /// A layer holds marks and nothing else: it becomes a segment without blocks and holes.
    SegmentOfMarks = "segment-of-marks",
    /// The name of a segment is taken, by this writer's own earlier try whose answer was lost: it counts as put.
    SegmentWasPut = "segment-was-put",
    /// The same of a map or table object of a checkpoint: what stands there is what was to be put.
    PageObjectWasPut = "page-object-was-put",
    /// A put ends before one with a lower ordinal: the segment does not count until the gap before it is closed.
    PutBeforeEarlier = "put-before-earlier",
    /// The store or coordination refuses for now what can not be left half done: it is tried again, later each time.
    TriedAgain = "tried-again",

    // Opening: from manifest, segments and journal to what was.
    /// Another journal than its own has some of a timeline's tail: it is copied over, and synced, before the timeline serves.
    TailGathered = "tail-gathered",
    /// A record stands in the journal twice: a crash came before the trim had passed the first. One is enough.
    CopyFound = "copy-found",
    /// Segments behind the manifest were put by a writer before its own: they are found by the cuts, and each must be there.
    EarlierRow = "earlier-row",
    /// The journal has changes that no segment has: they are replayed into layers.
    TailOfJournal = "tail-of-journal",
    /// The tail in the journal was written in several epochs: an opening died before it had put what it had found.
    TailOfEpochs = "tail-of-epochs",
    /// The journal has a change behind the cut of its epoch: an opening has said before that it does not count, so it is passed over.
    ChangeBehindCut = "change-behind-cut",
    /// A change is missing in the tail and later ones are there: the tail ends before it.
    TailGap = "tail-gap",
    /// A change is missing that was on stable media once: the volume is refused, not served without it.
    LossRefused = "loss-refused",
    /// There is nothing behind the manifest, neither segments nor journal: the opening only ends the epoch.
    NothingBehindManifest = "nothing-behind-manifest",
    /// A segment behind the manifest has the mark of a snapshot that is in no list: it was deleted since, and does not come back.
    DeletedMark = "deleted-mark",

    // Reads, and the proof of what is read.
    /// Bytes from the store are not what their name or checksum says: the error names the object, and nobody gets the bytes.
    DamageFound = "damage-found",
    /// An object that a manifest names is not in the store: the store has lost it, which is told as damage.
    ObjectMissing = "object-missing",
    /// A block in the read cache does not match its checksum: it is dropped, and read from the store.
    CacheDamaged = "cache-damaged",
    /// The read cache is full: a block that nobody used for a round gives its frame to another.
    CacheEviction = "cache-eviction",
    /// An object is gone while a read was on its way to it: what is known of its timeline is forgotten, and asked anew.
    LookedUpAnew = "looked-up-anew",
    /// A node of the map could not be loaded because a checkpoint has replaced it meanwhile: nobody needs it any more.
    NodeReplaced = "node-replaced",

    // Checkpoints.
    /// The overlay has boundaries of snapshots: the checkpoint merges stratum by stratum, and writes a root for each.
    SeveralBoundaries = "several-boundaries",
    /// A large discard lies in the overlay in pieces that touch: they are merged as one hole.
    HolesJoined = "holes-joined",
    /// A hole covers a subtree of the map whole: it is cut out unread, and goes into the reclaim queue.
    SubtreeDetached = "subtree-detached",
    /// A hole covers a subtree that is an ancestor's: it is cut out, and nothing is to be reclaimed below it.
    InheritedDetached = "inherited-detached",
    /// One manifest does not take all that is below the reclaim queue: what is left is worked off by later ones.
    ReclaimContinued = "reclaim-continued",
    /// A leaf of the map takes another of its three forms: its pointers have become more scattered, or denser.
    LeafChangesForm = "leaf-changes-form",
    /// The last block below an interior node is discarded: the node goes, and its parent loses an entry.
    NodeEmptied = "node-emptied",
    /// The last block of a volume is discarded: its map has no root any more.
    TreeEmptied = "tree-emptied",
    /// A block was overwritten that a snapshot or a clone still sees: its kill waits in a run.
    KillsKept = "kills-kept",
    /// A node was replaced that only the newest two manifests still name: its kill waits for the next checkpoint.
    KillsPassing = "kills-passing",
    /// A snapshot or a hold has gone: the kills that wait are asked again.
    KillsReconsidered = "kills-reconsidered",
    /// Kills were asked again, and nothing keeps any of them: no run is left.
    RunsDropped = "runs-dropped",
    /// More kills are to be asked again than one checkpoint asks: the others are left to the next.
    KillsAskedLater = "kills-asked-later",
    /// A segment has no live block, and a clone would need its index to be opened: it stays.
    HeldIndexKept = "held-index-kept",
    /// The manifest of a checkpoint was not put or not accepted: it is written again, from the state before it.
    ManifestTriedAgain = "manifest-tried-again",
    /// A checkpoint meets damage half-way, or needs an object that a newer owner has deleted: no other is made until the volume is opened again.
    CheckpointBroken = "checkpoint-broken",

    // Snapshots, clones, flattening.
    /// A snapshot is cloned or looked at while it is only a mark in a layer: its segments are waited for.
    SnapshotWaitsForPut = "snapshot-waits-for-put",
    /// A clone is made of a snapshot from before a rollback: a history that nobody sees any more takes the hold.
    HoldOnHistory = "hold-on-history",
    /// A clone begins at a boundary that has no root yet: it takes a root before it, and the entries between the two.
    CloneWithEntries = "clone-with-entries",
    /// A clone is made of a clone whose own inherited entries are in no root: a checkpoint comes first.
    CloneAfterCheckpoint = "clone-after-checkpoint",
    /// A clone of a clone, or of what was rolled back, is made: its pointers lead to more than one ancestor.
    CloneOfClone = "clone-of-clone",
    /// A flatten has given indexes of ancestors back, and a clone takes one of them for itself.
    LineageReused = "lineage-reused",
    /// A clone is opened that has not merged what it inherited: the entries come from segments of its origin.
    EntriesInherited = "entries-inherited",
    /// A hold's clone is gone, was never recorded or was flattened: the sweep drops the hold.
    HoldOrphaned = "hold-orphaned",
    /// A flatten has read a block that a guest has overwritten or discarded meanwhile: the guest's change stays.
    FlattenMeetsGuest = "flatten-meets-guest",
    /// A flatten finds a snapshot or a clone that leads to the origin: the volume stays dependent, and tells why.
    FlattenKept = "flatten-kept",

    // Hidden histories.
    /// The window of a hidden history is over and something of it is kept still: the rest is freed by the rule of boundaries.
    HistoryTrimmed = "history-trimmed",
    /// A clone has let go of the newest that is kept of a hidden history, and a check looks before what lies above is freed.
    CheckBeforeTrim = "check-before-trim",
    /// A hidden history is kept by a rollback alone: a walk has found what its volume reaches of it, and the rest is freed.
    HistorySwept = "history-swept",
    /// A hidden history was changed while somebody worked out what of it is free: the work is given up, and done anew.
    HistoryOvertaken = "history-overtaken",
    /// The window of a hidden history is over and nothing of it is kept: it becomes a tombstone, and its objects go by prefix.
    HistoryEnds = "history-ends",
    /// A hidden history was a tombstone already: a crash has interrupted its end, which goes on.
    HistoryEndResumed = "history-end-resumed",

    // Cleaning.
    /// What lives of sparse segments is gathered into a bundle.
    CleanJob = "clean-job",
    /// What a cleaned segment has changed is kept, for a clone that may read it.
    CleanHistory = "clean-history",
    /// The put of a bundle finds it there: the answer to an earlier try was lost.
    BundleWasPut = "bundle-was-put",
    /// Something is damaged where a job reads: it reads no more than what lives.
    CleanAroundDamage = "clean-around-damage",
    /// A segment that is cleaned is in a bundle already.
    CleanAgain = "clean-again",
    /// Some of the segments of a job were gone, or elsewhere, when it had ended.
    CleanOvertaken = "clean-overtaken",
    /// Little is left of some map objects: leaves of them move into the root that is being written.
    MapCompacted = "map-compacted",
    /// A closed history that is held for clones or snapshots is so sparse that it is cleaned.
    CleanClosed = "clean-closed",
    /// The window of a deleted volume that clones need is over: what they do not see of it is freed.
    GoneKept = "gone-kept",
    /// A job of cleaning is handed to another process, for a time.
    CleanLeased = "clean-leased",
    /// What another process has made was looked at, and the table points there.
    CleanAnswered = "clean-answered",
    /// What another process says that it has made is not there, or is something else.
    CleanRefused = "clean-refused",
    /// Nothing was heard of a job for so long that it was given up.
    CleanExpired = "clean-expired",
    /// An answer comes to a job that is over, or that nobody knows.
    CleanLate = "clean-late",
    /// A bundle of a job that was given up is in the store, and goes.
    CleanLostDeleted = "clean-lost-deleted",

    // Scrubbing.
    /// A pass of scrubbing begins: all objects that manifests name are looked at.
    ScrubPass = "scrub-pass",
    /// A pass of scrubbing was interrupted, and goes on where it was.
    ScrubGoesOn = "scrub-goes-on",
    /// An earlier process has told how far it came with scrubbing.
    ScrubRecalled = "scrub-recalled",
    /// What an earlier process has told of scrubbing makes no sense: it is begun anew.
    ScrubForgotten = "scrub-forgotten",
    /// Scrubbing finds the newest manifest of a timeline damaged or missing.
    ScrubFindsManifest = "scrub-finds-manifest",
    /// An object was gone, or not what it should be, and nothing names it any more.
    ScrubOvertaken = "scrub-overtaken",
    /// An object that is needed is damaged or missing.
    ScrubFinding = "scrub-finding",

    // The cache on devices.
    /// A block was found on a cache device, verified, and the store not asked.
    SsdHit = "ssd-hit",
    /// What a cache device gave for a block was another's, or damaged.
    SsdDamaged = "ssd-damaged",
    /// A cache device failed or hung, and is let be for a while.
    SsdRests = "ssd-rests",
    /// A region of a cache device was given up for new blocks.
    SsdRegionGivenUp = "ssd-region-given-up",
    /// A block of such a region had been asked for, and moved on.
    SsdKept = "ssd-kept",
    /// A start found what an earlier process had left on a cache device.
    SsdFound = "ssd-found",
    /// What a stream of reads will want next is fetched.
    ReadAhead = "read-ahead",
    /// A node of the map came from another timeline's RAM.
    NodeOfAnother = "node-of-another",
    /// A read waited for another one that was fetching the same blocks.
    FetchShared = "fetch-shared",

    // What stores answer.
    /// What a store has answered does not prove: it is asked again.
    AskedAgain = "asked-again",

    // Pressure.
    /// The store takes less than is written: a write is slowed, long before the journal is full.
    WriteSlowed = "write-slowed",

    // Rewinding.
    /// A block died that nothing but the rewind window keeps: its kill waits for the window to pass.
    RewindKillsKept = "rewind-kills-kept",
    /// A checkpoint moves the beginning of the rewind window: what died before it is asked again.
    RewindMoved = "rewind-moved",
    /// The rewind window would take more room than it may: its oldest part ends early.
    RewindFull = "rewind-full",
    /// Too many runs of kills wait for the rewind window: small ones become one.
    RewindRunsJoined = "rewind-runs-joined",
    /// The rewind window was turned off: what it kept is asked again.
    RewindClosed = "rewind-closed",
    /// A moment of the past is held for a clone.
    Rewound = "rewound",
    /// A moment lies behind its root: the segments between the two are replayed.
    RewindReplays = "rewind-replays",

    // The map's RAM.
    /// Nodes of a map that nobody looked at for a while leave RAM.
    NodesEvicted = "nodes-evicted",
    /// A node that was not looked at stays in RAM: it was written, and the store may not have it yet.
    UnstoredStayed = "unstored-stayed",
    /// A merge writes the nodes behind it before it is at its end: too many are dirty.
    RootWrittenBehind = "root-written-behind",
    /// A node is loaded from a map object that no manifest names yet.
    NodeOfFreshMap = "node-of-fresh-map",
    /// Somebody waits for a node that another one loads already.
    NodeLoadShared = "node-load-shared",

    // What is deleted.
    /// A volume was made, or cloned, and coordination did not take its record: its first manifest is deleted again.
    BirthTakenBack = "birth-taken-back",
    /// The window of a deleted volume is over and a clone of it lives: it stays until the clone is gone or flattened.
    PurgeKept = "purge-kept",
    /// The window of a deleted volume was over, and it was brought back just in time, while its end waited: it stays.
    PurgeOvertaken = "purge-overtaken",
    /// The manifest of a deleted volume is lost, so that nobody can tell whether others were born from it: it is kept.
    PurgeBlind = "purge-blind",
    /// The end of a deleted volume was interrupted: some of its histories have no objects any more, and it goes on with the others.
    PurgeResumed = "purge-resumed",
    /// The end of a deleted volume was interrupted: a history of it has its tombstone, which says what is left.
    EndResumed = "end-resumed",
    /// So much of a history that ends is deleted that a tombstone is written that has no more of it.
    EndShrinks = "end-shrinks",
    /// A tombstone says less already than it was to be cut down to: another node has come further.
    EndOvertaken = "end-overtaken",
    /// An object of an earlier opening is named by nothing: the sweep deletes it.
    OrphanDeleted = "orphan-deleted",
    /// The same of an object of a hidden history.
    HistoryOrphanDeleted = "history-orphan-deleted",
    /// Two manifests do without an object: it is deleted after the grace.
    DeadDeleted = "dead-deleted",
    /// A hidden history does without some objects and nothing else changes it: a manifest is written only so that a second one does without them.
    SecondManifest = "second-manifest",

    // Owners.
    /// The record says that the volume was opened elsewhere: the manifest is not accepted, and this node stops to serve it.
    ManifestFenced = "manifest-fenced",
    /// Another cluster has put an owner record for the pool: nothing is deleted in it any more, and its volumes stop.
    PoolLost = "pool-lost",

    // Import.
    /// The newest manifest of a timeline can not be read: the import takes an older one of the same opening, all of whose objects are there.
    ImportTakesOlder = "import-takes-older",
    /// The listing of the store lags: the import finds a newer manifest by asking for its name.
    ImportBehindListing = "import-behind-listing",
    /// A clone's manifest was put and no hold names the clone: it was never recorded, and is not imported.
    ImportLeavesUnborn = "import-leaves-unborn",
    /// A manifest landed when all else of its timeline was deleted for good: the import leaves it out.
    ImportLeavesEnded = "import-leaves-ended",
    /// A cut counts changes that only the journal of the old node has: the import takes that promise back.
    ImportBreaksPromise = "import-breaks-promise",

    // Coordination, and what has a name.
    /// The answer of coordination was lost, and the manifest turns out to be accepted: nothing is to be done again.
    UnknownApplied = "unknown-applied",
    /// The answer of coordination was lost, and the manifest turns out not to be accepted: it is offered again.
    UnknownNotApplied = "unknown-not-applied",
    /// Somebody else has changed a volume's record between reading and writing it: the change is made again on the newer one.
    RecordChanged = "record-changed",
    /// The name of a manifest is taken by an earlier try that was not accepted: the next number is used.
    ManifestNumberTaken = "manifest-number-taken",
    /// A manifest was deleted between asking coordination for its name and loading it: coordination is asked again.
    ManifestGone = "manifest-gone",

    // Mirrors and sessions.
    /// A mirror has come in sync: from then on coordination names it, and answers wait for it.
    MirrorJoined = "mirror-joined",
    /// A mirror was lost while it joined: nothing had been promised because of it.
    MirrorJoinFailed = "mirror-join-failed",
    /// A mirror that was in sync is lost: answers wait until coordination names it no more.
    MirrorParted = "mirror-parted",
    /// A node takes a volume over with the copy that it has of it.
    TakenAsMirror = "taken-as-mirror",
    /// Of two that wanted a volume the slower one finds that its epoch has changed.
    TakenBefore = "taken-before",
    /// An owner that opens its volume anew finds changes at its mirror that it has lost.
    MirrorKnewMore = "mirror-knew-more",
    /// An answer to a plain client waits until the mirror has given its owner a lease.
    LeaseAwaited = "lease-awaited",
    /// A mirror that takes over waits until the lease that it gave has ended.
    LeaseWaitedOut = "lease-waited-out",
    /// The mirror of a volume that is opened anew has lost its copy: its process is another one.
    MirrorForgot = "mirror-forgot",
    /// A mirror that may know more does not answer: the volume is not opened.
    MirrorAwaited = "mirror-awaited",
    /// A question to begin a copy was on its way for so long that a newer copy is there: it is refused.
    BeginLate = "begin-late",
    /// A take-over did not come about: the fence of the copy is taken back, so that the owner can use it again.
    FenceTakenBack = "fence-taken-back",
    /// An owner that was fenced by its mirror sends it a change.
    CopyFenced = "copy-fenced",
    /// A mirror has no room for another copy: another one is asked.
    CopyWithoutRoom = "copy-without-room",
    /// An owner has as much at its mirror as it may have: it has it put.
    CreditsUsedUp = "credits-used-up",
    /// A node is to keep a copy on disk of what it has changes of from when it was the owner: it looks whether it needs them.
    TailInTheWay = "tail-in-the-way",
    /// A node takes a volume over with a copy that its journal has.
    TakenFromDisk = "taken-from-disk",
    /// A start finds copies that an earlier process of the node has left in its journal.
    DiskCopyFound = "disk-copy-found",
    /// A journal with copies of others has failed: nobody counts on them any more.
    DiskCopiesSpoiled = "disk-copies-spoiled",
    /// A mirror has lost some of its copy, or may have: an owner that opens its volume anew takes what is left.
    MirrorKnewSome = "mirror-knew-some",
    /// A volume was taken from another node by force, and changes that were flushed are lost.
    LossForced = "loss-forced",
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
