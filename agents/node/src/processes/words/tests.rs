//! Words of a component on their way to the loop.

use std::os::unix::net::UnixDatagram;

use razar_os::BoundSocket;
use tokio::{task::JoinHandle, time::timeout};

use super::*;
use crate::logs::{From, LogStore};

const SOON: Duration = Duration::from_secs(20);

struct Bench {
    _dir: tempfile::TempDir,
    socket: Arc<NotifySocket>,
    component: UnixDatagram,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = NotifySocket::new(BoundSocket::bind(&dir.path().join("notify")).unwrap()).unwrap();
        let component = UnixDatagram::unbound().unwrap();
        component.connect(socket.bound().path()).unwrap();
        Self { _dir: dir, socket: Arc::new(socket), component }
    }

    /// An agent that listens, and what its loop gets.
    fn agent(&self) -> (JoinHandle<()>, mpsc::Receiver<ProcessNews>) {
        let (news, receiver) = mpsc::channel(8);
        (tokio::spawn(listen(self.socket.clone(), news, Instance::new("api", 0), Incarnation::new(1, 1))), receiver)
    }
}

async fn word(news: &mut mpsc::Receiver<ProcessNews>) -> Word {
    let Some(ProcessNews::Word(word)) = timeout(SOON, news.recv()).await.unwrap() else { panic!("other news") };
    word
}

fn notifying(startup: bool, readiness: bool, liveness: bool) -> v1::ComponentSpec {
    let probe = |told: bool| told.then(|| v1::Probe { check: Some(Check::Notify(v1::NotifyCheck::default())), ..Default::default() });
    v1::ComponentSpec { startup: probe(startup), readiness: probe(readiness), liveness: probe(liveness), ..Default::default() }
}

#[tokio::test]
async fn a_word_is_there_until_what_follows_from_it_is_written_down() {
    let bench = Bench::new();
    bench.component.send(b"READY=1").unwrap();
    bench.component.send(b"WATCHDOG=1").unwrap();
    let (task, mut news) = bench.agent();
    // This agent hears it, and dies before it has written anything.
    let heard = word(&mut news).await;
    assert_eq!(heard.signs(&notifying(false, true, true)), [(Role::Readiness, "READY=1"), (Role::Liveness, "WATCHDOG=1")]);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled() && news.try_recv().is_err(), "nothing more was heard");
    let (_task, mut news) = bench.agent();
    let again = word(&mut news).await;
    assert_eq!(again.signs(&notifying(true, true, false)), [(Role::Startup, "READY=1"), (Role::Readiness, "READY=1")]);
    again.done();
    // Now the next word has its turn.
    let next = word(&mut news).await;
    assert_eq!(next.signs(&notifying(true, true, true)), [(Role::Liveness, "WATCHDOG=1")]);
}

/// The specification may come later than the word: from the bus, where the plan on the disk cannot be read.
#[tokio::test]
async fn a_word_that_cannot_be_understood_yet_comes_again() {
    let bench = Bench::new();
    bench.component.send(b"READY=1").unwrap();
    let (_task, mut news) = bench.agent();
    drop(word(&mut news).await);
    let again = word(&mut news).await;
    assert_eq!(again.signs(&notifying(false, true, false)), [(Role::Readiness, "READY=1")]);
    assert!(again.signs(&v1::ComponentSpec::default()).is_empty());
}

#[tokio::test]
async fn what_means_nothing_is_passed_over() {
    let bench = Bench::new();
    for odd in [&b"nonsense"[..], b"STATUS=on its way", b"READY=0"] {
        bench.component.send(odd).unwrap();
    }
    bench.component.send(b"READY=1").unwrap();
    let (_task, mut news) = bench.agent();
    assert_eq!(word(&mut news).await.signs(&notifying(true, false, false)), [(Role::Startup, "READY=1")]);
}

async fn sign(news: &mut mpsc::Receiver<ProcessNews>) -> Role {
    let Some(ProcessNews::Sign(_, _, role, _)) = timeout(SOON, news.recv()).await.unwrap() else { panic!("other news") };
    role
}

/// What a start and a readiness wait for may be written at once, and in either order.
#[tokio::test]
async fn lines_that_come_together_are_signs_of_all_that_wait_for_them() {
    let (loaded, listening) = ("the model is loaded", "listening on 80");
    for text in [format!("{loaded}\n{listening}\n"), format!("{listening}\n{loaded}\n"), format!("{loaded}, {listening}\n{loaded}\n")] {
        let dir = tempfile::tempdir().unwrap();
        let (logs, api, incarnation) = (LogStore::new(dir.path().to_owned()), Instance::new("api", 0), Incarnation::new(1, 1));
        let mut log = logs.open(&api, incarnation).unwrap();
        std::io::Write::write_all(&mut log.file, text.as_bytes()).unwrap();
        let (news, mut heard) = mpsc::channel(8);
        let patterns = ["loaded$|loaded,", "listening on"].map(|pattern| Regex::new(pattern).unwrap());
        let follow = logs.follow(&api, incarnation, From::Beginning).unwrap();
        let roles = vec![Role::Startup, Role::Readiness];
        let reading = tokio::spawn(read_signs(follow, news, api, incarnation, roles, patterns.to_vec()));
        let mut roles = [sign(&mut heard).await, sign(&mut heard).await];
        roles.sort();
        assert_eq!(roles, [Role::Startup, Role::Readiness], "{text:?}");
        timeout(SOON, reading).await.unwrap().unwrap();
        assert!(heard.recv().await.is_none(), "each is said once");
    }
}
