//! Layers: broken connections, ranges, partial files.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::sync::{Condvar, Mutex};

use super::*;

/// Reads the layer of `image` from a server that answers the n-th request for it with `script`.
fn read(
    image: &Image,
    script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>, String>, Vec<usize>) {
    read_keeping(image, None, script)
}

fn read_keeping(
    image: &Image,
    partial: Option<&File>,
    script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>, String>, Vec<usize>) {
    read_within(quick(), image, partial, script)
}

fn read_within(
    patience: Patience,
    image: &Image,
    partial: Option<&File>,
    script: impl Fn(usize, &Asked) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>, String>, Vec<usize>) {
    let requests = AtomicUsize::new(0);
    let server = Server::start(move |asked| {
        script(requests.fetch_add(usize::from(asked.target != "/v2/"), Ordering::SeqCst), asked)
    });
    let (name, config) = (format!("{}/a/b:tag", server.host()), RegistryConfig::default());
    let partial = |_: &Digest| partial.map(|file| file.try_clone().unwrap());
    let remote = Remote { config: &config, partial: &partial, stop: &GO_ON };
    let registry = Registry::with_patience(&name.parse().unwrap(), &remote, patience).unwrap();
    let bytes =
        layer(&registry, image).map_err(|error| message(error.get_ref().unwrap()).replace(&server.host(), "HOST"));
    (bytes, server.asked().iter().map(Asked::from).collect())
}

fn partial(content: &[u8]) -> File {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    OpenOptions::new().read(true).append(true).open(file.path()).unwrap()
}

fn content(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_broken_transfer_goes_on_where_it_ended() {
    let image = Image::new(1 << 20);
    let serves = image.clone();
    let patience = Patience { read: Duration::from_secs(1), ..quick() };
    let (bytes, from) = read_within(patience, &image, None, move |number, asked| {
        let part = serves.part(asked.from());
        match number {
            0 => part.cut(1000, Then::Close),
            1 => reply(503, ""),
            2 => part.cut(500, Then::Stall),
            3 => part.cut(0, Then::Close),
            _ => part,
        }
    });
    assert_eq!(bytes.unwrap(), *image.layer);
    assert_eq!(from, [0, 1000, 1000, 1500, 1500]);
}

#[test]
fn a_transfer_that_makes_progress_may_break_any_number_of_times() {
    let image = Image::new(1 << 20);
    let serves = image.clone();
    let (bytes, from) = read(&image, move |_, asked| serves.part(asked.from()).cut(100_000, Then::Close));
    assert_eq!(bytes.unwrap(), *image.layer);
    assert_eq!(from.len(), image.layer.len().div_ceil(100_000));
}

#[test]
fn one_that_makes_none_ends() {
    let image = Image::new(3000);
    let serves = image.clone();
    let (error, from) = read(&image, move |number, asked| match number {
        0 => serves.part(asked.from()).cut(100, Then::Close),
        _ => serves.part(asked.from()).cut(0, Then::Close),
    });
    let error = error.unwrap_err();
    assert!(error.contains("HOST"), "{error}");
    assert_eq!(from[1..], [100; 5]);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let image = Image::new(1 << 18);
    let serves = image.clone();
    let (bytes, _) = read(&image, move |number, _| {
        let all = serves.part(0);
        if number < 3 { all.cut(10_000 * (number + 1), Then::Close) } else { all }
    });
    assert_eq!(bytes.unwrap(), *image.layer);
}

#[test]
fn lies_about_sizes_and_ranges_are_final() {
    let image = Image::new(3000);
    let length = image.layer.len();
    for (second, want) in [
        (reply(206, "x").header("content-range", format!("bytes 0-0/{length}")), "bytes from 0 on instead of 100"),
        (reply(206, "x").header("content-range", "bytes 100-100/5"), "has 5 bytes for blob sha256:"),
        (reply(206, "x"), "a part that does not say which"),
        (reply(206, "x").header("content-range", "nonsense"), "a part that does not say which"),
        (reply(200, "short"), "has 5 bytes for blob sha256:"),
        (reply(416, ""), "has 0 bytes for blob sha256:"),
        (reply(404, ""), "has no blob sha256:"),
        (reply(206, "x").header("content-range", format!("bytes 100-100/{length}")), "CutShort"),
    ] {
        let (serves, answer) = (image.clone(), second.clone());
        let (error, from) = read(&image, move |number, _| match number {
            0 => serves.part(0).cut(100, Then::Close),
            _ => answer.clone(),
        });
        if want == "CutShort" {
            // Honest, but little: it is asked for the next part.
            assert_eq!(from[..3], [0, 100, 101]);
        } else {
            let error = error.unwrap_err();
            assert!(error.contains(want), "{error}");
            assert_eq!(from, [0, 100]);
        }
    }
    let (error, from) = read(&image, |_, _| reply(200, vec![0; 1 << 20]));
    assert!(error.unwrap_err().contains("has 1048576 bytes for blob"));
    assert_eq!(from, [0]);
}

#[test]
fn no_more_is_read_than_the_manifest_says() {
    let image = Image::new(3000);
    let (bytes, _) = read(&image, |_, _| reply(200, "").unbounded(Then::Flood));
    assert_eq!(bytes.unwrap().len(), image.layer.len());
}

#[test]
fn a_trickle_is_a_stall_however_often_it_begins_anew() {
    let image = Image::new(1 << 20);
    let length = image.layer.len();
    let patience = Patience { window: Duration::from_millis(200), ..quick() };
    let (error, from) = read_within(patience, &image, None, move |_, asked| {
        let range = format!("bytes {}-{}/{length}", asked.from(), length - 1);
        let status = if asked.from() == 0 { 200 } else { 206 };
        reply(status, "").header("content-range", range).unbounded(Then::Drip)
    });
    let error = error.unwrap_err();
    assert!(error.contains("registry `HOST` has all but stopped sending"), "{error}");
    assert_eq!(from.len(), 6);
    assert!(from[5] > 0);
}

#[test]
fn what_an_earlier_pull_left_comes_first() {
    let image = Image::new(2 << 20);
    let half = image.layer.len() / 2;
    for (kept, from) in [
        (&image.layer[..half], &[half][..]),
        (&image.layer[..], &[]),
        (&[], &[0]),
        (&[&image.layer[..], b"longer"].concat(), &[0]),
    ] {
        let (serves, file) = (image.clone(), partial(kept));
        let (bytes, asked) = read_keeping(&image, Some(&file), move |_, asked| serves.part(asked.from()));
        assert_eq!(bytes.unwrap(), *image.layer);
        assert_eq!(asked, from);
        assert_eq!(content(&file), *image.layer);
    }
}

#[test]
fn the_partial_file_is_a_prefix_whenever_a_pull_ends() {
    let image = Image::new(2 << 20);
    let file = partial(b"");
    for length in [100_000, 700_000] {
        let serves = image.clone();
        let (error, _) = read_keeping(&image, Some(&file), move |number, asked| match number {
            0 => serves.part(asked.from()).cut(length, Then::Close),
            _ => reply(404, ""),
        });
        error.unwrap_err();
        let kept = content(&file);
        assert!(kept.len() >= 100_000 && image.layer.starts_with(&kept), "{}", kept.len());
    }
    let serves = image.clone();
    let (bytes, from) = read_keeping(&image, Some(&file), move |_, asked| serves.part(asked.from()));
    assert_eq!(bytes.unwrap(), *image.layer);
    assert_eq!(from, [800_000]);
}

#[test]
fn a_small_blob_is_not_kept() {
    let image = Image::new(1000);
    let file = partial(b"");
    let serves = image.clone();
    let (bytes, _) = read_keeping(&image, Some(&file), move |_, asked| serves.part(asked.from()));
    assert_eq!(bytes.unwrap(), *image.layer);
    assert_eq!(content(&file), b"");
}

#[test]
fn layers_are_fetched_at_once_and_stopped_at_once() {
    let image = Image::new(1 << 20);
    let serves = image.clone();
    let server = Server::start(move |asked| serves.part(asked.from()).cut(1000, Then::Stall));
    let (name, config) = (format!("{}/a/b:tag", server.host()), RegistryConfig::default());
    let remote = Remote { config: &config, partial: &kept_nowhere, stop: &GO_ON };
    let patient = Patience { read: Duration::from_secs(3600), ..quick() };
    let registry = Registry::with_patience(&name.parse().unwrap(), &remote, patient).unwrap();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..6).map(|_| scope.spawn(|| layer(&registry, &image))).collect();
        while server.asked().len() < 6 {
            thread::yield_now();
        }
        registry.stop();
        for reader in readers {
            assert!(is_stopped(&reader.join().unwrap().unwrap_err()));
        }
    });
    assert!(is_stopped(&layer(&registry, &image).unwrap_err()));
}

/// A registry that gives no layer before three were asked for: waiting for one of them must not keep the others back, on a
/// machine of a single core too.
#[test]
fn three_layers_are_fetched_at_once() {
    let archives: Vec<Vec<u8>> = (1..=3).map(|blocks| vec![0; blocks * 1024]).collect();
    let image = Image::new(10).with_layers(&archives);
    let digests: Vec<String> = archives.iter().map(|archive| sha256(archive).to_string()).collect();
    let (asked_for, changed) = (Mutex::new(BTreeSet::new()), Condvar::new());
    let server = Server::start(move |asked| {
        let Some(number) = digests.iter().position(|digest| asked.target.ends_with(digest)) else {
            return image.answer(asked);
        };
        let mut numbers = asked_for.lock().unwrap();
        numbers.insert(number);
        changed.notify_all();
        // Less than an answer is waited for, after which the same layer is asked for again.
        let enough = changed.wait_timeout_while(numbers, Duration::from_secs(20), |numbers| numbers.len() < 3).unwrap();
        if enough.1.timed_out() { reply(404, "") } else { reply(200, &archives[number]) }
    });
    assert_eq!(pull(&server, &RegistryConfig::default()).unwrap(), 3);
}

#[test]
fn a_signed_address_that_has_run_out_is_asked_for_again() {
    let image = Image::new(3000);
    let elsewhere = Server::start({
        let image = image.clone();
        move |asked| if asked.target.contains("fresh") { image.part(asked.from()) } else { reply(403, "expired") }
    });
    let to = elsewhere.host();
    let (bytes, _) = read(&image, move |number, _| {
        let signature = if number == 0 { "stale" } else { "fresh" };
        reply(307, "").header("location", format!("http://{to}/?signature={signature}"))
    });
    assert_eq!(bytes.unwrap(), *image.layer);
}
