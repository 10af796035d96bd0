//! Questions and answers, as a NATS micro service.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use razar_bus::{BusError, QueryServer};
use razar_bus_schema::v1;

use crate::{
    broker::{Broker, SOON, soon},
    played::stranger,
};

async fn serve(mut server: QueryServer) {
    while let Some(query) = server.next().await {
        match query.read::<v1::WhyRequest>() {
            Ok(_) if query.verb == "why" => {
                let _ = query.answer(&v1::PingReply { node: "a".to_owned(), ..v1::PingReply::default() }).await;
            }
            Ok(_) => drop(query.refuse(404, "no such instance").await),
            Err(error) => drop(query.refuse(400, &error.to_string()).await),
        }
    }
}

#[tokio::test]
async fn questions_are_answered_in_their_own_form() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.bus().await?;
    let subjects = bus.subjects().clone();
    let endpoints = [("why", subjects.node("a", "why")), ("logs", subjects.node("a", "logs"))];
    let server = bus.serve("razar-node", "0.1.0", "starts components", &endpoints).await?;
    bus.flush().await?;
    let serving = tokio::spawn(serve(server));
    let asker = broker.bus().await?;
    let reply: v1::PingReply = asker.ask(&subjects.node("a", "why"), &v1::WhyRequest::default(), SOON).await?;
    assert_eq!(reply.node, "a");
    let refused = asker.ask::<_, v1::PingReply>(&subjects.node("a", "logs"), &v1::WhyRequest::default(), SOON).await;
    assert_eq!(refused, Err(BusError::Broker { code: 404, why: "no such instance".to_owned() }));
    let stranger = stranger(&broker).await?;
    let json = stranger.request(subjects.node("a", "why"), Bytes::from_static(b"{}")).await?;
    assert_eq!(json.payload.as_ref(), br#"{"node":"a"}"#);
    let rubbish = stranger.request(subjects.node("a", "why"), Bytes::from_static(b"\xff\xff")).await?;
    assert!(rubbish.headers.context("headers")?.get("Nats-Service-Error").is_some());
    let info = stranger.request("$SRV.INFO.razar-node", Bytes::new()).await?;
    assert!(String::from_utf8_lossy(&info.payload).contains("razar.node.a.why"));
    serving.abort();
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_known_at_once() -> Result<()> {
    let broker = Broker::start()?;
    let bus = broker.bus().await?;
    let began = Instant::now();
    let asked = bus.ask::<_, v1::PingReply>(&bus.subjects().node("b", "ping"), &v1::PingRequest::default(), SOON).await;
    assert!(matches!(asked, Err(BusError::NoResponders { .. })), "{asked:?}");
    assert!(began.elapsed() < Duration::from_secs(1));
    Ok(())
}

#[tokio::test]
async fn a_service_answers_after_a_broker_kill() -> Result<()> {
    let mut broker = Broker::start()?;
    let bus = broker.bus().await?;
    let subject = bus.subjects().node("a", "why");
    let server = bus.serve("razar-node", "0.1.0", "starts components", &[("why", subject.clone())]).await?;
    let serving = tokio::spawn(serve(server));
    broker.kill();
    broker.spawn()?;
    let asker = broker.bus().await?;
    let answered = async {
        loop {
            if asker.ask::<_, v1::PingReply>(&subject, &v1::WhyRequest::default(), SOON).await.is_ok() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    soon("an answer", answered).await?;
    serving.abort();
    Ok(())
}
