//! What the store keeps, for whom, and what it lets go.

use super::*;
use crate::user::Accounts;

#[test]
fn the_store_is_for_its_owner_only() {
    let place = Place::new();
    let path = place.dir.path().join("deep/er/store");
    Store::open(&only(&path)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    Store::open(&only(&path)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Store::open(&only(&path)).unwrap_err().to_string();
    assert!(error.contains("is open to other users") && error.contains("run `chmod 700 "), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(Store::open(&only(&path)).unwrap_err().to_string().contains("belongs to another user"));
    }
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(Store::open(&only(&link)).unwrap_err().to_string().contains("is a symbolic link"));
}

#[test]
fn another_place_is_taken_only_for_a_new_store() {
    let place = Place::new();
    let at = |name: &str| place.dir.path().join(name);
    fs::write(at("file"), "").unwrap();
    let places = Places { own: vec![at("file"), at("spare")], extra: Vec::new() };
    assert!(Store::existing(&places).unwrap().is_none());
    let mut told = Vec::new();
    let store = Store::open(&places).unwrap();
    pulled(&store, &place.layout(), &Selector::Default, Pull::Never, &mut |event| told.push(event)).unwrap_err();
    assert!(matches!(&told[..], [Event::Placed(why)] if why.contains("spare") && why.contains("file")), "{told:?}");
    fs::remove_file(at("file")).unwrap();
    assert_eq!(Store::open(&places).unwrap().path(), at("spare"));
    assert_eq!(Store::existing(&places).unwrap().unwrap().path(), at("spare"));
    fs::write(at("other"), "").unwrap();
    let error = Store::open(&only(&at("other"))).unwrap_err().to_string();
    assert!(error.contains("there is no place") && error.ends_with("on a local disk"), "{error}");
    assert_eq!(fs::read_dir(at("spare/tmp")).unwrap().count(), 0);
}

#[test]
fn a_known_image_needs_its_source_no_more_when_it_is_not_to_be_pulled() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(std::slice::from_ref(&a));
    let never = || place.pull(&Selector::Default, Pull::Never, &mut |_| panic!("nothing to do"));
    let error = never().unwrap_err().to_string();
    assert!(error.contains("is not in the store") && error.contains("`agentd pull oci:"), "{error}");
    let first = place.get(&Selector::Default).unwrap();
    fs::remove_dir_all(place.layout()).unwrap();
    let known = never().unwrap();
    assert_eq!((&known.layers, &known.config), (&first.layers, &first.config));
    assert_eq!(known.manifest_digest, first.manifest_digest);
    drop((first, known));
    // A damaged config is as good as none.
    let blobs = place.dir.path().join("data/store/blobs/sha256");
    for blob in fs::read_dir(blobs).unwrap() {
        fs::write(blob.unwrap().path(), "{}").unwrap();
    }
    never().unwrap_err();
    assert!(!place.store().images().unwrap()[0].complete);
}

#[test]
fn only_what_nothing_needs_is_removed() {
    let layers: Vec<_> = ["1", "2", "3", "4"].map(|text| layer(&[("a", text)])).into();
    let mut place = Place::new();
    for (tag, which) in [("x", [0, 1]), ("y", [0, 2]), ("z", [3, 3])] {
        let layers: Vec<_> = which.iter().map(|i| (LAYER, &layers[*i][..], sha256(&layers[*i]))).collect();
        let manifest = place.manifest(&layers, |_, _| {});
        place.add(manifest, Some(tag));
    }
    let tag = |tag: &str| Selector::Tag(tag.into());
    let reference = |tag: &str| format!("oci:{}:{tag}", place.layout().display());
    let z = place.get(&tag("z")).unwrap();
    let used = InUse { layers: z.layers.iter().cloned().collect(), images: [z.manifest_digest.clone()].into() };
    drop(z);
    drop((place.get(&tag("x")).unwrap(), place.get(&tag("y")).unwrap()));
    let store = place.store();
    let clean = || store.clean(&mut || panic!("nobody holds the store")).unwrap();
    let left = || fs::read_dir(place.dir.path().join("data/store/layers")).unwrap().count();
    assert!(clean().unneeded(&used, false).unwrap().is_empty());
    assert_eq!(left(), 4);
    // x's own layer goes, the one it shares with y stays.
    let cleaning = clean();
    let rubbish = cleaning.only_for(&[reference("x")], &used).unwrap();
    assert_eq!(rubbish.layers, [(sha256(&layers[1]).to_string(), 1)]);
    assert_eq!(rubbish.documents.len(), 2);
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(left(), 3);
    // A name that leads elsewhere now leaves documents and layers behind.
    let cleaning = clean();
    let rubbish = cleaning.unneeded(&used, true).unwrap();
    assert_eq!(rubbish.names, [reference("y")]);
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(store.images().unwrap().len(), 1);
    // A job keeps the layers and the documents of an image that has lost its name: what it wrote can be committed.
    let cleaning = clean();
    let rubbish = cleaning.only_for(&[reference("z")], &used).unwrap();
    assert!(rubbish.layers.is_empty() && rubbish.documents.is_empty());
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(left(), 1);
    let cleaning = clean();
    let rubbish = cleaning.unneeded(&InUse::default(), false).unwrap();
    assert_eq!((rubbish.layers.len(), rubbish.documents.len()), (1, 2));
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(left(), 0);
    place.nothing_left();
}

#[test]
fn whoever_holds_an_image_is_waited_for() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(std::slice::from_ref(&a));
    let image = place.get(&Selector::Default).unwrap();
    let store = place.store();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let cleaning = scope.spawn(|| {
            let cleaning = store.clean(&mut || sender.send(()).unwrap()).unwrap();
            let rubbish = cleaning.unneeded(&InUse::default(), true).unwrap();
            cleaning.remove(&rubbish).unwrap();
        });
        receiver.recv().unwrap();
        assert_eq!(text(&image, 0, "a"), "1");
        drop(image);
        cleaning.join().unwrap();
    });
    assert_eq!(fs::read_dir(place.dir.path().join("data/store/layers")).unwrap().count(), 0);
}

#[test]
fn a_layer_without_its_attributes_is_none() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(std::slice::from_ref(&a));
    let image = place.get(&Selector::Default).unwrap();
    rustix::fs::removexattr(image.layers[0].parent().unwrap(), FACTS).unwrap();
    place.fails("has lost its attributes");
}

#[test]
fn stores_of_others_are_read_and_not_written() {
    let a = layer(&[("a", "1")]);
    let place = Place::image(&[a.clone(), layer(&[("b", "2")])]);
    drop(place.get(&Selector::Default).unwrap());
    let shared = place.dir.path().join("data/store");
    let places = Places { own: vec![place.dir.path().join("own")], extra: vec![shared.clone()] };
    let before = fs::read_dir(shared.join("layers")).unwrap().count();
    let store = Store::open(&places).unwrap();
    let image = pulled(&store, &place.layout(), &Selector::Default, Pull::Never, &mut |_| {}).unwrap();
    assert!(image.layers.iter().all(|path| path.starts_with(&shared)));
    assert!(store.images().unwrap()[0].read_only);
    drop(image);
    let cleaning = store.clean(&mut || {}).unwrap();
    let rubbish = cleaning.unneeded(&InUse::default(), true).unwrap();
    assert!(rubbish.is_empty(), "{rubbish:?}");
    cleaning.remove(&rubbish).unwrap();
    assert_eq!(fs::read_dir(shared.join("layers")).unwrap().count(), before);
    // A layer that is only there is found for another image too.
    let other = Place::image(std::slice::from_ref(&a));
    let image = pulled(&store, &other.layout(), &Selector::Default, Pull::Missing, &mut |_| panic!("nothing")).unwrap();
    assert!(image.layers[0].starts_with(&shared));
    drop(image);
    let refused = |want: &str| {
        let error = Store::open(&places).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    for part in ["", "layers", "images"] {
        let path = shared.join(part);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o775)).unwrap();
        refused("others may write there (mode 775)");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let one = fs::read_dir(shared.join("layers")).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&one, fs::Permissions::from_mode(0o777)).unwrap();
    let error = pulled(&store, &place.layout(), &Selector::Default, Pull::Missing, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("others may write there"), "{error}");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&shared, Some(65534), None).unwrap();
        refused("belongs to uid 65534, which is neither root nor you");
    }
    fs::remove_dir_all(&shared).unwrap();
    refused("does not exist");
}

/// The notes of a store, and its one layer's directory.
fn notes(place: &Place) -> (PathBuf, Vec<String>, PathBuf) {
    let store = place.dir.path().join("data/store");
    let names =
        |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let layers: Vec<String> = names(&store.join("layers"));
    let notes = store.join("unsynced");
    let found = names(&notes);
    (notes, found, store.join("layers").join(layers.first().map_or("", String::as_str)))
}

#[test]
fn a_layer_noted_before_the_machine_started_is_unpacked_again() {
    let place = Place::image(&[layer(&[("f", "whole")])]);
    place.get(&Selector::Default).unwrap();
    let (directory, names, layer) = notes(&place);
    assert_eq!(names.len(), 1);
    assert!(names[0].starts_with(layer.file_name().unwrap().to_str().unwrap()), "{names:?}");
    // As after a crash that emptied the file: without the note it is believed, with an earlier start's it is not.
    fs::write(layer.join("fs/f"), "").unwrap();
    place.get(&Selector::Default).unwrap();
    assert_eq!(fs::read(layer.join("fs/f")).unwrap(), b"");
    let (before, _boot) = names[0].rsplit_once('.').unwrap();
    fs::rename(directory.join(&names[0]), directory.join(format!("{before}.an-earlier-start"))).unwrap();
    place.get(&Selector::Default).unwrap();
    assert_eq!(fs::read(layer.join("fs/f")).unwrap(), b"whole");
    assert_eq!(notes(&place).1, names);
}

#[test]
fn notes_go_when_they_are_written_back_and_stay_when_they_are_of_another_machine() {
    let place = Place::image(&[layer(&[("f", "1")])]);
    place.get(&Selector::Default).unwrap();
    let (directory, names, layer) = notes(&place);
    let [key, pid, _machine, boot] = names[0].split('.').collect::<Vec<_>>()[..] else { panic!("{names:?}") };
    let foreign = format!("{key}.{pid}.another-machine.{boot}x");
    fs::write(directory.join(&foreign), "").unwrap();
    let write_back = place.store().write_back().unwrap().unwrap();
    assert!(place.store().write_back().unwrap().is_none(), "one process does it");
    assert_eq!(notes(&place).1.len(), 2);
    // Of a pull that ends meanwhile, and leaves it to the one that is at it.
    fs::write(directory.join(names[0].replace(&format!(".{pid}."), ".1.")), "").unwrap();
    assert!(place.store().write_back().unwrap().is_none());
    write_back.finish().unwrap();
    assert_eq!(notes(&place).1, [foreign]);
    assert!(place.store().write_back().unwrap().is_none(), "there is nothing to do");
    assert!(layer.join("fs/f").metadata().is_ok());
}

#[test]
fn the_users_of_an_image_are_looked_for_once_and_go_with_its_topmost_layer() {
    let below = layer(&[("etc/passwd", "root:x:0:0::/root:/bin/sh\n"), ("etc/group", "root:x:0:\n")]);
    let above = layer(&[("etc/passwd", "app:x:7:8:\t\u{7f}:/app:/bin/sh\n")]);
    let place = Place::image(&[below, above]);
    let store = place.store();
    let image = place.get(&Selector::Default).unwrap();
    let looked = store.accounts(&image).unwrap();
    assert_eq!(looked, Accounts::read(&image.layers).unwrap());
    assert!(looked.passwd.starts_with("app:") && looked.group.starts_with("root:"), "{looked:?}");
    let topmost = image.layers[1].parent().unwrap().to_owned();
    let names = || {
        let paths = fs::read_dir(&topmost).unwrap().map(|entry| entry.unwrap().path());
        paths.filter(|path| !path.ends_with("fs")).collect::<Vec<_>>()
    };
    let kept = names().pop().unwrap();

    // Whole, it is believed; anything else is looked for again, and replaced.
    fs::write(&kept, r#"{"passwd":"kept","group":""}"#).unwrap();
    assert_eq!(store.accounts(&image).unwrap().passwd, "kept");
    for damaged in ["", r#"{"passwd":"kept","gro"#, "{}", "\0\0\0\0", r#"{"passwd":"ke\0pt","group":""}"#] {
        fs::write(&kept, damaged.replace("\\0", "\0")).unwrap();
        assert_eq!(store.accounts(&image).unwrap(), looked, "{damaged}");
        assert_eq!(store.accounts(&image).unwrap(), looked, "{damaged}");
    }
    fs::remove_file(&kept).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &kept).unwrap();
    assert_eq!(store.accounts(&image).unwrap(), looked);
    assert_eq!(names(), std::slice::from_ref(&kept));
    assert!(fs::symlink_metadata(&kept).unwrap().is_file());

    let reference = ImageRef::Oci { layout: place.layout(), select: Selector::Default };
    drop(image);
    let cleaning = store.clean(&mut || {}).unwrap();
    let rubbish = cleaning.only_for(&[reference.to_string()], &InUse::default()).unwrap();
    cleaning.remove(&rubbish).unwrap();
    assert!(fs::symlink_metadata(&kept).is_err());
    place.nothing_left();
}
