//! Words of a component on their way to the loop.

use std::os::unix::net::UnixDatagram;

use tokio::time::timeout;

use super::*;

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
        let roles = vec![Role::Readiness, Role::Liveness];
        (tokio::spawn(listen(self.socket.clone(), news, Instance::new("api", 0), Incarnation::new(1, 1), roles)), receiver)
    }
}

async fn sign(news: &mut mpsc::Receiver<ProcessNews>) -> (Role, String, Option<oneshot::Sender<()>>) {
    let Some(ProcessNews::Sign(_, _, role, said, done)) = timeout(SOON, news.recv()).await.unwrap() else { panic!("other news") };
    (role, said, done)
}

/// Both signs of READY=1; who waits for them to be written down.
async fn ready(news: &mut mpsc::Receiver<ProcessNews>) -> oneshot::Sender<()> {
    let (first, said, done) = sign(news).await;
    assert_eq!((first, said.as_str()), (Role::Readiness, "READY=1"));
    assert!(done.is_none(), "the last one of a message is waited for");
    let (second, _, done) = sign(news).await;
    assert_eq!(second, Role::Liveness);
    done.unwrap()
}

#[tokio::test]
async fn a_word_is_there_until_what_follows_from_it_is_written_down() {
    let bench = Bench::new();
    bench.component.send(b"READY=1").unwrap();
    bench.component.send(b"WATCHDOG=1").unwrap();
    let (task, mut news) = bench.agent();
    // This agent hears it, and dies before it has written anything.
    drop(ready(&mut news).await);
    timeout(SOON, task).await.unwrap().unwrap();
    assert!(news.try_recv().is_err(), "nothing more was heard");
    let (_task, mut news) = bench.agent();
    ready(&mut news).await.send(()).unwrap();
    // Now the next word has its turn.
    let (role, said, _done) = sign(&mut news).await;
    assert_eq!((role, said.as_str()), (Role::Liveness, "WATCHDOG=1"));
}

#[tokio::test]
async fn what_means_nothing_is_passed_over() {
    let bench = Bench::new();
    for odd in [&b"nonsense"[..], b"STATUS=on its way", b"READY=0"] {
        bench.component.send(odd).unwrap();
    }
    bench.component.send(b"READY=1").unwrap();
    let (_task, mut news) = bench.agent();
    drop(ready(&mut news).await);
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
        let mut roles = [sign(&mut heard).await.0, sign(&mut heard).await.0];
        roles.sort();
        assert_eq!(roles, [Role::Startup, Role::Readiness], "{text:?}");
        timeout(SOON, reading).await.unwrap().unwrap();
        assert!(heard.recv().await.is_none(), "each is said once");
    }
}
