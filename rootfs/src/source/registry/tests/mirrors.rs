//! Several places: mirrors are asked first, believed only as far as digests go, and left when they fail.

use super::auth::{BASIC, password, stored};
use super::*;

/// Settings with `mirrors` before `origin`.
fn mirrored(dir: &tempfile::TempDir, origin: &Server, mirrors: &[&Server]) -> RegistryConfig {
    let path = dir.path().join("registries.conf");
    let mut text = format!("[[registry]]\nlocation = '{}'\n", origin.host());
    for mirror in mirrors {
        text += &format!("[[registry.mirror]]\nlocation = '{}'\n", mirror.host());
    }
    std::fs::write(&path, text).unwrap();
    RegistryConfig { registries: vec![path], ..RegistryConfig::default() }
}

#[test]
fn the_first_mirror_that_has_it_serves_it_all() {
    let image = Image::new(2 << 20);
    let (first, second, origin) = (Server::start(|_| reply(404, "")), image.clone().serve(), image.clone().serve());
    let dir = tempfile::tempdir().unwrap();
    let config = mirrored(&dir, &origin, &[&first, &second]);
    let bytes = with(&format!("{}/a/b:tag", origin.host()), &config, |registry| {
        registry.manifest(&Limits::default()).unwrap();
        layer(registry, &image).unwrap()
    });
    assert_eq!(bytes.unwrap(), *image.layer);
    assert_eq!((first.asked().len(), second.asked().len(), origin.asked().len()), (1, 3, 0));
}

#[test]
fn a_mirror_that_lies_is_left() {
    let image = Image::new(10);
    let liar = Server::start({
        let image = image.clone();
        move |asked| {
            let honest = image.answer(asked);
            Reply { body: [&honest.body[..], b" "].concat(), ..honest }
        }
    });
    let origin = image.clone().serve();
    let dir = tempfile::tempdir().unwrap();
    let config = mirrored(&dir, &origin, &[&liar]);
    let found = manifest(&origin, &config).unwrap();
    assert_eq!(found.digest, sha256(image.manifest.as_bytes()));
    assert_eq!((liar.asked().len(), origin.asked().len()), (1, 2));
}

#[test]
fn a_layer_begun_at_a_mirror_is_finished_at_the_origin() {
    let image = Image::new(2 << 20);
    let origin = image.clone().serve();
    let mirror = Server::start({
        let (image, cut) = (image.clone(), AtomicBool::new(false));
        move |asked| match image.is_layer(asked) {
            false => image.answer(asked),
            true if !cut.swap(true, Ordering::SeqCst) => image.answer(asked).cut(500_000, Then::Close),
            true => reply(500, ""),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let config = mirrored(&dir, &origin, &[&mirror]);
    let bytes = with(&format!("{}/a/b:tag", origin.host()), &config, |registry| {
        registry.manifest(&Limits::default()).unwrap();
        layer(registry, &image).unwrap()
    });
    assert_eq!(bytes.unwrap(), *image.layer);
    let asked = origin.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].from(), 500_000);
}

/// That they are others is known when all of them are there.
#[test]
fn a_layer_of_which_a_mirror_has_other_bytes_is_begun_anew_at_the_origin() {
    let archive = vec![0; 2 << 20];
    let image = Image { layer: Arc::new(archive.clone()), ..Image::new(10).with_layers(&[archive]) };
    let lying = || {
        let image = image.clone();
        Server::start(move |asked| {
            let mut answer = image.answer(asked);
            if image.is_layer(asked)
                && let Some(last) = answer.body.last_mut()
            {
                *last = 1;
            }
            answer
        })
    };
    let (liar, origin) = (lying(), image.clone().serve());
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(pull(&origin, &mirrored(&dir, &origin, &[&liar])).unwrap(), 1);
    assert_eq!(liar.asked().len(), 3, "what it has sent is looked at once");
    let asked = origin.asked();
    assert_eq!((asked.len(), asked[0].from()), (1, 0), "nothing of the mirror's is gone on with");

    let (liar, origin) = (lying(), lying());
    let message = message(&pull(&origin, &mirrored(&dir, &origin, &[&liar])).unwrap_err());
    assert!(message.contains("is corrupt: its bytes hash to"), "{message}");
    assert_eq!((liar.asked().len(), origin.asked().len()), (3, 1));
}

#[test]
fn each_place_is_shown_only_what_is_stored_for_it() {
    let image = Image::new(10);
    let locked = || {
        let image = image.clone();
        Server::start(move |asked| match asked.header("authorization") {
            Some(BASIC) => image.answer(asked),
            _ => reply(401, "").header("www-authenticate", "Basic realm=\"r\""),
        })
    };
    let (mirror, origin) = (locked(), locked());
    let dir = tempfile::tempdir().unwrap();
    let knowing = |place: &Server| RegistryConfig {
        auth_files: stored(&dir, &place.host(), &password()).auth_files,
        ..mirrored(&dir, &origin, &[&mirror])
    };
    manifest(&origin, &knowing(&origin)).unwrap();
    let asked = mirror.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked.header("authorization").is_none()), "{asked:?}");
    let before = origin.asked().len();
    manifest(&origin, &knowing(&mirror)).unwrap();
    assert_eq!(mirror.asked().iter().filter(|asked| asked.header("authorization") == Some(BASIC)).count(), 2);
    assert_eq!(origin.asked().len(), before);
}

#[test]
fn when_nobody_has_it_the_origins_answer_is_told() {
    let (mirror, origin) = (Server::start(|_| reply(500, "")), Server::start(|_| reply(404, "")));
    let dir = tempfile::tempdir().unwrap();
    let error = manifest(&origin, &mirrored(&dir, &origin, &[&mirror])).unwrap_err();
    assert_eq!(message(&error), format!("registry `{}` has no image `a/b:tag`", origin.host()));
    assert_eq!(mirror.asked().len(), 2);
}
