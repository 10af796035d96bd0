//! Connecting: without waiting, to nothing that is too old, forbidden or gone for ever.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use razar_bus::{Bus, BusError, Config, Connection, Start};
use tokio::io::AsyncWriteExt;

use crate::{
    broker::{Broker, SOON, free_port, soon},
    played::event,
};

#[tokio::test]
async fn a_broker_that_comes_later_is_found() -> Result<()> {
    let mut broker = Broker::start()?;
    broker.kill();
    let began = Instant::now();
    let bus = Bus::connect(broker.config()).await?;
    assert!(began.elapsed() < Duration::from_secs(1), "connecting does not wait");
    let mut fold = bus.fold_events(Start::Beginning);
    assert!(!bus.is_up());
    assert_eq!(bus.publish("razar.heartbeat.node.a", Bytes::new(), "").await, Err(BusError::Down));
    assert!(matches!(bus.ready(Duration::from_millis(100)).await, Err(BusError::Timeout { .. })));
    broker.spawn()?;
    bus.ready(SOON).await?;
    razar_bus::provision(&bus).await?;
    soon("the fold", fold.next()).await?;
    Ok(())
}

#[tokio::test]
async fn the_state_of_the_connection_is_told() -> Result<()> {
    let mut broker = Broker::start()?;
    let bus = broker.bus().await?;
    let mut connection = bus.connection();
    broker.kill();
    soon("down", connection.wait_for(|c| matches!(c, Connection::Down { .. }))).await??;
    broker.spawn()?;
    soon("up", connection.wait_for(Connection::is_up)).await??;
    assert_eq!(bus.statistics().reconnects, 1);
    Ok(())
}

/// Fault 5.
#[tokio::test]
async fn a_broker_that_stands_still_is_noticed() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.bus().await?;
    broker.signal("STOP")?;
    let began = Instant::now();
    soon("down", bus.connection().wait_for(|c| matches!(c, Connection::Down { .. }))).await??;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    broker.signal("CONT")?;
    bus.ready(SOON).await?;
    Ok(())
}

#[tokio::test]
async fn an_old_server_is_refused_in_plain_words() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let info = r#"{"server_id":"x","server_name":"x","version":"2.9.10","go":"","host":"127.0.0.1","port":1,"headers":true,"max_payload":1048576,"proto":1,"jetstream":true}"#;
            let _ = socket.write_all(format!("INFO {info}\r\nPONG\r\n").as_bytes()).await;
            tokio::spawn(async move {
                tokio::time::sleep(SOON).await;
                drop(socket);
            });
        }
    });
    let config =
        Config { servers: vec![format!("127.0.0.1:{port}")], mesh: "razar".to_owned(), name: "test".to_owned(), credentials: None };
    let bus = Bus::connect(config).await?;
    let refused = bus.ready(SOON).await;
    assert_eq!(refused, Err(BusError::ServerTooOld { version: "2.9.10".to_owned(), min: "2.15.1" }));
    assert!(bus.flush().await.is_err());
    serving.abort();
    Ok(())
}

#[tokio::test]
async fn what_the_broker_forbids_is_an_error_not_a_wait() -> Result<()> {
    let more =
        r#"authorization { users: [ { user: a, password: b, permissions: { publish: { deny: ["razar.event.>", "razar.log.>"] } } } ] }"#;
    let broker = Broker::with(more)?;
    let mut config = broker.config();
    config.servers = vec![format!("nats://a:b@127.0.0.1:{}", broker.port)];
    let bus = Bus::connect(config).await?;
    bus.ready(SOON).await?;
    razar_bus::provision(&bus).await?;
    for _ in 0..2 {
        let began = Instant::now();
        let denied = bus.publish_event(&event(1), "").await;
        assert_eq!(denied, Err(BusError::Denied { subject: "razar.event.heart.api.component_ready".to_owned() }));
        assert!(began.elapsed() < Duration::from_secs(2));
    }
    bus.publish("razar.log.heart.api", Bytes::new(), "").await?;
    soon("the violation of a publish without answer", async {
        while bus.statistics().denials < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_are_told() -> Result<()> {
    let broker = Broker::with("authorization { user: a, password: b }")?;
    let bus = Bus::connect(broker.config()).await?;
    assert!(matches!(bus.ready(SOON).await, Err(BusError::Unauthorized(_))));
    Ok(())
}

#[tokio::test]
async fn wrong_configuration_is_refused() -> Result<()> {
    let port = free_port()?;
    let config = |servers: &[String], mesh: &str| Config {
        servers: servers.to_vec(),
        mesh: mesh.to_owned(),
        name: "test".to_owned(),
        credentials: None,
    };
    let good = format!("127.0.0.1:{port}");
    for wrong in [config(&[], "razar"), config(std::slice::from_ref(&good), "Bad Mesh"), config(&["a b c".to_owned()], "razar")] {
        assert!(matches!(Bus::connect(wrong).await, Err(BusError::Config(_))));
    }
    let mut missing = config(&[good], "razar");
    missing.credentials = Some("/nonexistent/agent.creds".into());
    assert!(matches!(Bus::connect(missing).await, Err(BusError::Config(_))));
    Ok(())
}

#[tokio::test]
async fn closing_loses_nothing_that_was_published() -> Result<()> {
    let broker = Broker::start()?;
    let watcher = broker.bus().await?;
    let mut beats = watcher.subscribe("razar.heartbeat.>", 100).await?;
    watcher.flush().await?;
    let bus = broker.bus().await?;
    for _ in 0..20 {
        bus.publish("razar.heartbeat.agent.a", Bytes::new(), "").await?;
    }
    let began = Instant::now();
    bus.close(SOON).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for _ in 0..20 {
        soon("a beat", beats.next()).await?;
    }
    assert!(!bus.is_up());
    Ok(())
}
