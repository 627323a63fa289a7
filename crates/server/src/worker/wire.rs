// SPDX-License-Identifier: Apache-2.0
//! Jobs of cleaning as documents, there and back.
//!
//! What comes from the other side is taken apart strictly: a name that is not spelled as names are, ordinals out of order, runs that do not add up, or more of
//! anything than a job can have is refused, and nothing is read or put for it.
//!
//! The node trusts no answer beyond its form: what it says is compared with the store by the engine.

use crate::api::ControlError;
use crate::api::model::{CleaningCodec, CleaningDone, CleaningJob, CleaningSource, CleaningTerms};
use varve_engine::{CleanAnswer, CleanJob, CleanSource, LeaseTerms, Leased};
use varve_format::bundle::MAX_SHARES;
use varve_format::segment::Codec;
use varve_format::table::LiveBits;
use varve_format::{ObjectKind, ObjectName};
use varve_types::{ClusterId, MAX_SEGMENT_BLOCKS, Ordinal};

/// A job for who asks.
pub(crate) fn document(leased: &Leased, store: String, cluster: ClusterId) -> CleaningJob {
    let job = &leased.job;
    let source = |source: &CleanSource| CleaningSource {
        ordinal: source.ordinal.0,
        object: source.object.to_string(),
        live: runs(&source.live),
        history: source.history,
    };
    CleaningJob {
        id: leased.id,
        pool: leased.pool.clone(),
        store,
        cluster,
        owner_number: leased.owner,
        bundle: job.bundle.to_string(),
        codec: match job.codec {
            Codec::Raw => CleaningCodec::Raw,
            Codec::Lz4 => CleaningCodec::Lz4,
            Codec::Zstd => CleaningCodec::Zstd,
        },
        made_ms: job.made_ms,
        sources: job.sources.iter().map(source).collect(),
        terms: terms(leased.terms),
    }
}

/// For how long, and how fast.
pub(crate) fn terms(terms: LeaseTerms) -> CleaningTerms {
    CleaningTerms {
        lease_ms: u64::try_from(terms.time.as_millis()).unwrap_or(u64::MAX),
        rate_bytes: (terms.rate > 0).then_some(terms.rate),
    }
}

/// What a process says that it has made.
///
/// # Errors
/// `Invalid` where that is no name of a bundle.
pub(crate) fn answer(done: &CleaningDone) -> Result<CleanAnswer, ControlError> {
    let CleaningDone { shares, read_bytes, put_bytes, .. } = *done;
    Ok(CleanAnswer { bundle: bundle(&done.bundle)?, shares, read_bytes, put_bytes })
}

fn bundle(text: &str) -> Result<ObjectName, ControlError> {
    let name = ObjectName::parse(text).filter(|name| name.kind == ObjectKind::Bundle);
    name.ok_or_else(|| {
        ControlError::invalid(format!("{:?} is not the name of a bundle", text.chars().take(120).collect::<String>()))
    })
}

/// The job of a document.
///
/// # Errors
/// `Invalid` where it can not be one.
pub(crate) fn job(document: &CleaningJob) -> Result<CleanJob, ControlError> {
    let bundle = bundle(&document.bundle)?;
    let wrong = |what: String| ControlError::invalid(format!("the job for {bundle}: {what}"));
    if document.sources.is_empty() || document.sources.len() > MAX_SHARES {
        return Err(wrong(format!("it has {} segments", document.sources.len())));
    }
    let mut sources: Vec<CleanSource> = Vec::with_capacity(document.sources.len());
    for source in &document.sources {
        let ordinal = Ordinal(source.ordinal);
        let named = ObjectName::parse(&source.object).filter(|name| name.timeline == bundle.timeline);
        let is_its = |name: &ObjectName| match name.kind {
            ObjectKind::Segment => name.number == ordinal.0,
            ObjectKind::Bundle => *name != bundle,
            _ => false,
        };
        let Some(object) = named.filter(is_its) else {
            return Err(wrong(format!("segment {ordinal} can not be in {:?}", source.object)));
        };
        if sources.last().is_some_and(|last| last.ordinal >= ordinal) {
            return Err(wrong(format!("segment {ordinal} is out of order")));
        }
        let live = bits(&source.live).ok_or_else(|| wrong(format!("the runs of segment {ordinal} do not add up")))?;
        sources.push(CleanSource { ordinal, object, live, history: source.history });
    }
    let codec = match document.codec {
        CleaningCodec::Raw => Codec::Raw,
        CleaningCodec::Lz4 => Codec::Lz4,
        CleaningCodec::Zstd => Codec::Zstd,
    };
    Ok(CleanJob { bundle, codec, made_ms: document.made_ms, sources })
}

/// Lengths of runs, in turn of dead and of living blocks, beginning with dead ones.
fn runs(live: &LiveBits) -> Vec<u32> {
    let (mut runs, mut is_live, mut len) = (Vec::new(), false, 0);
    for block in 0..live.blocks() {
        if live.is_live(block) != is_live {
            runs.push(len);
            (is_live, len) = (!is_live, 0);
        }
        len += 1;
    }
    if len > 0 {
        runs.push(len);
    }
    runs
}

/// The bits of such runs; `None` where they are not written as [`runs`] does, or are of more blocks than a segment has.
fn bits(runs: &[u32]) -> Option<LiveBits> {
    let most = MAX_SEGMENT_BLOCKS;
    let blocks = runs.iter().try_fold(0u32, |sum, len| sum.checked_add(*len).filter(|sum| *sum <= most))?;
    if runs.iter().skip(1).any(|len| *len == 0) || runs == [0] {
        return None;
    }
    let (mut live, mut at) = (LiveBits::all(blocks), 0);
    for (turn, len) in runs.iter().enumerate() {
        if turn % 2 == 0 {
            for block in at..at + len {
                live.clear(block);
            }
        }
        at += len;
    }
    Some(live)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use varve_types::{Epoch, LeaseId, TimelineId, WriterId};

    fn leased() -> Leased {
        let name = |kind, number| ObjectName {
            timeline: TimelineId::from_bytes([7; 16]),
            kind,
            number,
            part: 0,
            epoch: Epoch(3),
            writer: WriterId(9),
        };
        let mut some = LiveBits::all(100);
        [0, 1, 50, 99].iter().for_each(|block| assert!(some.clear(*block)));
        let mut none = LiveBits::all(3);
        (0..3).for_each(|block| assert!(none.clear(block)));
        let source = |ordinal, object, live, history| CleanSource { ordinal: Ordinal(ordinal), object, live, history };
        let sources = vec![
            source(4, name(ObjectKind::Segment, 4), some, false),
            source(5, name(ObjectKind::Bundle, 1), LiveBits::all(65_536), true),
            source(6, name(ObjectKind::Bundle, 1), none, true),
            source(7, name(ObjectKind::Segment, 7), LiveBits::all(0), true),
        ];
        let job = CleanJob { bundle: name(ObjectKind::Bundle, 2), codec: Codec::Lz4, made_ms: 99, sources };
        let terms = LeaseTerms { time: Duration::from_secs(120), rate: 0 };
        Leased { id: LeaseId::from_bytes([1; 16]), pool: "default".parse().unwrap(), owner: 1, job, terms }
    }

    fn documented() -> CleaningJob {
        document(&leased(), "file:///s".to_owned(), ClusterId::from_bytes([2; 16]))
    }

    #[test]
    fn a_job_comes_back() {
        let document = documented();
        assert_eq!(document.sources[0].live, [2, 48, 1, 48, 1]);
        assert_eq!((&document.sources[1].live[..], &document.sources[2].live[..]), (&[0, 65_536][..], &[3][..]));
        let text = serde_json::to_string(&document).unwrap();
        let back = job(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(format!("{back:?}"), format!("{:?}", leased().job));
    }

    #[test]
    fn what_can_not_be_a_job_is_refused() {
        type Spoil = fn(&mut CleaningJob);
        let spoils: [(&str, Spoil); 13] = [
            ("no segments", |job| job.sources.clear()),
            ("too many", |job| {
                let source = job.sources[1].clone();
                job.sources = (0..1025).map(|ordinal| CleaningSource { ordinal, ..source.clone() }).collect();
            }),
            ("out of order", |job| job.sources.swap(1, 2)),
            ("twice", |job| job.sources[2].ordinal = 5),
            ("not a name", |job| job.sources[0].object = "owner/1".to_owned()),
            ("another segment's object", |job| job.sources[0].object = job.sources[3].object.clone()),
            ("a manifest", |job| job.sources[1].object = job.sources[1].object.replace("/bun/", "/man/")),
            ("another timeline", |job| job.sources[0].object = job.sources[0].object.replacen("07", "08", 1)),
            ("from the bundle into itself", |job| job.sources[1].object = job.bundle.clone()),
            ("a segment for a bundle", |job| job.bundle = job.sources[0].object.clone()),
            ("more blocks than a segment has", |job| job.sources[1].live = vec![1, 65_536]),
            ("more than can be counted", |job| job.sources[1].live = vec![u32::MAX, u32::MAX]),
            ("empty runs", |job| job.sources[1].live = vec![0, 1, 0, 1]),
        ];
        for (what, spoil) in spoils {
            let mut document = documented();
            spoil(&mut document);
            assert!(job(&document).is_err(), "{what}");
        }
    }
}
