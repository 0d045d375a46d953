//! Reaching what was not allowed, and sockets that go round the network namespace (THREATS.md, 4).

use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use agentd_tests::attack::{Attack, Control, assert_refused, natively};
use agentd_tests::{Feature, Home, require};

use Control::{InNamespaces, Natively, Nowhere};

/// Whether the kernel has this kind of socket; where it has not, the refusal inside shows nothing more.
fn has(word: &str) -> bool {
    natively(&[word])[word] != "EAFNOSUPPORT"
}

#[test]
fn escape_without_a_network_nothing_is_reached() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = format!("tcp={}", listener.local_addr().unwrap());
    let udp = format!("udp={}", datagrams.local_addr().unwrap());
    let words = [tcp.as_str(), udp.as_str()];
    assert!(natively(&words).values().all(|outcome| outcome == "ok"));
    let inside = home.attack(&[], &words);
    assert_eq!(inside[words[0]], "ECONNREFUSED", "the box's loopback is its own");
    // A datagram to the box's own loopback is lost there; the host's socket hears nothing but the native one.
    datagrams.set_nonblocking(true).unwrap();
    let mut heard = 0;
    while datagrams.recv(&mut [0; 8]).is_ok() {
        heard += 1;
    }
    assert_eq!(heard, 1);
    let elsewhere = [
        "tcp=1.1.1.1:443",
        "udp=1.1.1.1:53",
        "tcp=169.254.169.254:80",
        "tcp=10.0.0.1:80",
        "tcp=[2606:4700::1111]:443",
        "udp=[2606:4700::1111]:53",
        "udp=255.255.255.255:9",
        "udp=224.0.0.1:9",
    ];
    for (word, outcome) in home.attack(&[], &elsewhere) {
        let unreachable = ["ENETUNREACH", "EADDRNOTAVAIL", "EHOSTUNREACH", "EACCES"];
        assert!(unreachable.contains(&outcome.as_str()), "{word}: {outcome}");
    }
    // Control: with the host's network the same words reach the same listener.
    let with_network = home.attack(&["--net", "host"], &words);
    assert!(with_network.values().all(|outcome| outcome == "ok"), "{with_network:?}");
}

#[test]
fn escape_raw_packet_and_odd_sockets_are_refused() {
    if !require(Feature::Userns) {
        return;
    }
    let absent = |word: &'static str| if has(word) { Natively } else { Nowhere("this kernel has no such sockets") };
    let attacks = [
        Attack::new("socket=2,3,1", "EPERM", InNamespaces),
        Attack::new("socket=2,3,255", "EPERM", InNamespaces),
        Attack::new("socket=10,3,58", "EPERM", InNamespaces),
        // Flags and garbage in the type, and above its 32 bits.
        Attack::new("socket=2,0x80803,1", "EPERM", InNamespaces),
        Attack::new("socket=0xdead00000002,0xbeef00000003,1", "EPERM", InNamespaces),
        Attack::new("socket=17,3,0", "EAFNOSUPPORT", InNamespaces),
        Attack::new("socket=40,1,0", "EAFNOSUPPORT", absent("socket=40,1,0")),
        Attack::new("socket=16,3,4", "EAFNOSUPPORT", Natively),
        Attack::new("socket=16,3,9", "EPROTONOSUPPORT", Natively),
        Attack::new("socket=16,3,12", "EAFNOSUPPORT", Natively),
        Attack::new("socket=16,3,15", "EAFNOSUPPORT", Natively),
        Attack::new("socket=44,3,0", "EAFNOSUPPORT", Nowhere("not in every kernel")),
        Attack::new("socket=29,3,1", "EAFNOSUPPORT", Nowhere("not in every kernel")),
        Attack::new("socket=43,1,0", "EAFNOSUPPORT", Nowhere("not in every kernel")),
        Attack::new("socket=2,1,262", "EPROTONOSUPPORT", Nowhere("not in every kernel")),
        Attack::new("socket=2,1,132", "EPROTONOSUPPORT", Nowhere("not in every kernel")),
        Attack::new("socketpair=30,1,0", "EAFNOSUPPORT", Nowhere("not in every kernel")),
        // What everything uses stays.
        Attack::new("socket=16,3,0", "ok", Natively),
        Attack::new("socket=1,1,0", "ok", Natively),
        Attack::new("socketpair=1,1,0", "ok", Natively),
    ];
    for flags in [&[][..], &["--net", "host"], &["--user", "root"]] {
        assert_refused(&Home::new(), flags, &attacks);
    }
}

/// CVE-2026-31431: AF_ALG, by the native entry and by those of i386 and x32, whose numbers a filter may not know.
#[cfg(target_arch = "x86_64")]
#[test]
fn escape_af_alg_is_refused_by_every_entry() {
    if !require(Feature::Userns) {
        return;
    }
    let absent = |word: &'static str| if has(word) { Natively } else { Nowhere("this kernel has no AF_ALG") };
    // An i386 entry that works natively shows that the attack gets there; AF_UNIX exists everywhere.
    let i386 = |word: &'static str| {
        if natively(&[word])[word] == "ok" { Natively } else { Nowhere("this kernel has no i386 entry") }
    };
    let attacks = [
        Attack::new("socket=38,5,0", "EAFNOSUPPORT", absent("socket=38,5,0")),
        Attack::new("socket=0xdeadbeef00000026,5,0", "EAFNOSUPPORT", absent("socket=38,5,0")),
        Attack::new("socket-i386=38,5,0", "killed by 31", Nowhere("AF_UNIX below")),
        Attack::new("socketcall-i386=38,5,0", "killed by 31", Nowhere("AF_UNIX below")),
        Attack::new("socket-i386=1,1,0", "killed by 31", i386("socket-i386=1,1,0")),
        Attack::new("socketcall-i386=1,1,0", "killed by 31", i386("socketcall-i386=1,1,0")),
        Attack::new("socket-x32=38,5,0", "ENOSYS", Nowhere("few kernels have x32")),
    ];
    for flags in [&[][..], &["--net", "host"]] {
        assert_refused(&Home::new(), flags, &attacks);
    }
}

/// GHSA-wr3w-jmg2-xhcx and others: a socket of the host is a way to ask the host's programs to run something.
#[test]
fn escape_unix_sockets_of_the_host_are_out_of_reach() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let name = format!("agentd-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let datagram_name = format!("{name}-datagram");
    let _datagrams = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&datagram_name).unwrap()).unwrap();
    let path = home.path().join("bus");
    let _path = UnixListener::bind(&path).unwrap();
    let words =
        [format!("abstract={name}"), format!("abstract-datagram={datagram_name}"), format!("unix={}", path.display())];
    let words = words.each_ref().map(String::as_str);
    assert!(natively(&words).values().all(|outcome| outcome == "ok"), "{:?}", natively(&words));
    let none = home.attack(&[], &words);
    assert_eq!(
        [words[0], words[1], words[2]].map(|word| none[word].as_str()),
        ["ECONNREFUSED", "ECONNREFUSED", "ENOENT"]
    );
    // With the host's network the name is there, and Landlock's scope stands before it.
    let host = home.attack(&["--net", "host"], &words);
    assert_eq!([words[0], words[1], words[2]].map(|word| host[word].as_str()), ["EPERM", "EPERM", "ENOENT"]);
    // No socket of the host is anywhere in the tree that the box sees.
    assert_eq!(
        home.said(&[], "find / -xdev -type s 2>/dev/null; find /usr /etc /run /tmp -type s 2>/dev/null; true"),
        ""
    );
}

#[test]
fn escape_the_network_the_box_tells_of_is_its_own() {
    if !require(Feature::Userns) {
        return;
    }
    let home = Home::new();
    let said = home.said(&[], "cat /proc/net/unix /proc/net/tcp /proc/net/arp /etc/resolv.conf; ls /sys/class/net");
    assert!(said.ends_with("lo\n"), "{said}");
    assert!(!said.contains("nameserver"), "{said}");
    assert!(!said.lines().any(|line| line.contains("/run/") || line.contains("dbus")), "{said}");
}
