//! What operators of Redis do to a link: errors, missing rights, rotated passwords, one name for several servers.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use texto_lab::client::{Answer, Client};
use texto_lab::gateway::Gateway;
use texto_lab::process::{free_port, until};
use texto_lab::proxy::Proxy;
use texto_lab::redis_server::RedisServer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_texto"))
}

async fn redis(folder: &TempDir, options: &[&str]) -> RedisServer {
    RedisServer::start("127.0.0.1", folder.path(), options, None).await.unwrap()
}

/// Waits until `/readyz` fails for a reason that contains all of `parts`.
async fn fails_because(gateway: &Gateway, parts: &[&str]) {
    let outcome = until("the reason is named", LIMIT, async || {
        let health = gateway.health().await.ok()?;
        let output = health["checks"]["broker"][0]["output"].as_str()?.to_owned();
        (health["status"] == "fail" && parts.iter().all(|part| output.contains(part))).then_some(())
    });
    if let Err(error) = outcome.await {
        panic!("{parts:?}: {error}: {:#}", gateway.health().await.unwrap_or_default());
    }
}

async fn failures(gateway: &Gateway, redis: &RedisServer) -> f64 {
    let name = format!("texto_link_failures_total{{address=\"{}\"}}", redis.address());
    gateway.metric(&name).await.unwrap_or(0.0)
}

/// One heartbeat after the other is answered on both connections.
async fn beats(gateway: &Gateway, redis: &RedisServer, count: f64) {
    let name = format!("texto_heartbeat_seconds_count{{address=\"{}\"}}", redis.address());
    let before = gateway.metric(&name).await.unwrap_or(0.0);
    until("heartbeats are answered", LIMIT, async || (gateway.metric(&name).await? >= before + count).then_some(()))
        .await
        .unwrap();
}

/// A script that runs until it is killed: everything else is answered BUSY.
struct Script(JoinHandle<redis::RedisResult<()>>);

impl Script {
    async fn start(server: &RedisServer) -> Self {
        let mut connection = server.client().await.unwrap();
        let script = tokio::spawn(async move {
            redis::cmd("EVAL").arg("while true do end").arg(0).query_async(&mut connection).await
        });
        until("it is busy", LIMIT, async || {
            let error = server.command::<String>(&["PING"]).await.err()?;
            error.to_string().to_lowercase().contains("busy").then_some(())
        })
        .await
        .unwrap();
        Self(script)
    }

    async fn kill(self, server: &RedisServer) {
        server.command::<()>(&["SCRIPT", "KILL"]).await.unwrap();
        self.0.await.unwrap().unwrap_err();
    }
}

/// PING is answered MISCONF then, and nothing is wrong with pub/sub.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_cannot_save_carries_messages_all_the_same() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &["--stop-writes-on-bgsave-error", "yes", "--save", "3600 1"]).await;
    let gateway = Gateway::start(binary(), &["--redis", &redis.address()], &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    // Where the file should go is a folder.
    let dump: Vec<String> = redis.command(&["CONFIG", "GET", "dir"]).await.unwrap();
    std::fs::create_dir(Path::new(&dump[1]).join("dump.rdb")).unwrap();
    redis.command::<()>(&["SET", "something", "changed"]).await.unwrap();
    redis.command::<String>(&["BGSAVE"]).await.unwrap();
    until("it refuses PING", LIMIT, async || redis.command::<String>(&["PING"]).await.is_err().then_some(()))
        .await
        .unwrap();
    beats(&gateway, &redis, 20.0).await;
    assert_eq!(failures(&gateway, &redis).await, 0.0);
    let mut client = Client::connect(gateway.address).await.unwrap();
    assert_eq!(client.send(client.id, "to myself").await.unwrap(), Answer::Ack);
    let began = Instant::now();
    assert_eq!(client.send(Uuid::new_v4(), "?").await.unwrap(), Answer::Error("ENOTCONN".to_owned()));
    assert!(began.elapsed() < Duration::from_secs(3));
}

/// SUBSCRIBE is answered BUSY then, and so is everything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_runs_a_long_script_subscribes_everybody_afterwards() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &["--lua-time-limit", "20"]).await;
    let gateway = Gateway::start(binary(), &["--redis", &redis.address()], &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut stays = Client::connect(gateway.address).await.unwrap();
    let leaves = Client::connect(gateway.address).await.unwrap();
    let left = leaves.id;

    let script = Script::start(&redis).await;
    drop(leaves);
    let mut comes = Client::connect(gateway.address).await.unwrap();
    // A gateway that starts now has all of it before it.
    let late = Gateway::start(binary(), &["--redis", &redis.address()], &[]).await.unwrap();
    fails_because(&late, &["BUSY"]).await;
    // SUBSCRIBE was answered before these.
    beats(&gateway, &redis, 8.0).await;
    assert_eq!(failures(&gateway, &redis).await, 0.0);
    script.kill(&redis).await;

    late.wait_ready(LIMIT).await.unwrap();
    for (client, expected) in [(comes.id, 1), (left, 0)] {
        let channel = format!("texto:{client}");
        until("everybody is subscribed who is there, and nobody else", LIMIT, async || {
            let (_, count): (String, u64) = redis.command(&["PUBSUB", "NUMSUB", &channel]).await.ok()?;
            (count == expected).then_some(())
        })
        .await
        .unwrap();
    }
    assert_eq!(stays.send(comes.id, "welcome").await.unwrap(), Answer::Ack);
    assert_eq!(comes.receive().await.unwrap(), (stays.id, "welcome".to_owned()));
    assert_eq!(failures(&gateway, &redis).await, 0.0);
}

/// Who comes meanwhile is greeted before it is subscribed.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_greeted_while_redis_is_busy_is_never_absent() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &["--lua-time-limit", "20"]).await;
    let gateway = Gateway::start(binary(), &["--redis", &redis.address()], &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut sender = Client::connect(gateway.address).await.unwrap();
    for _ in 0..3 {
        let script = Script::start(&redis).await;
        let receiver = Client::connect(gateway.address).await.unwrap();
        script.kill(&redis).await;
        let began = Instant::now();
        assert_eq!(sender.send(receiver.id, "welcome").await.unwrap(), Answer::Ack);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

/// It answers each question with an error, which says nothing of who is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_busy_for_long_makes_nobody_absent() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &["--lua-time-limit", "20"]).await;
    // Longer than a node that is missing everywhere is waited for.
    let arguments = ["--redis", &redis.address(), "--send-timeout", "8s"];
    let gateway = Gateway::start(binary(), &arguments, &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut client = Client::connect(gateway.address).await.unwrap();
    let script = Script::start(&redis).await;
    assert_eq!(client.send(client.id, "to myself").await.unwrap(), Answer::Error("EBROKER".to_owned()));
    script.kill(&redis).await;
    assert_eq!(client.send(client.id, "to myself").await.unwrap(), Answer::Ack);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_are_named_with_their_mend_before_anybody_is_connected() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &[]).await;
    let all = "+publish +subscribe +unsubscribe +pubsub|numsub +role +hello +auth +client|setname";
    let user = |rights: &str| format!("resetchannels {rights}");
    for (rights, parts) in [
        (user(&format!("{all} -publish &texto:*")), ["PUBLISH", "ACL SETUSER texto +publish"]),
        (user(&format!("{all} -subscribe &texto:*")), ["SUBSCRIBE", "ACL SETUSER texto +subscribe"]),
        (user(&format!("{all} -role &texto:*")), ["ROLE", "ACL SETUSER texto +role"]),
        (user(&all.replace(" +pubsub|numsub", " &texto:*")), ["PUBSUB NUMSUB", "ACL SETUSER texto +pubsub|numsub"]),
        (user(&format!("{all} &other:*")), ["SUBSCRIBE", "ACL SETUSER texto &texto:*"]),
    ] {
        let mut words = vec!["ACL", "SETUSER", "texto", "reset", "on", ">secret"];
        words.extend(rights.split(' '));
        redis.command::<()>(&words).await.unwrap();
        let variables = [("TEXTO_REDIS_PASSWORD", "secret"), ("TEXTO_REDIS_USERNAME", "texto")];
        let gateway = Gateway::start(binary(), &["--redis", &redis.address()], &variables).await.unwrap();
        fails_because(&gateway, &parts).await;
        assert!(failures(&gateway, &redis).await < 20.0, "it is not hammered");
    }
    // As the documentation has it.
    let mut words = vec!["ACL", "SETUSER", "texto", "reset", "on", ">secret", "resetchannels", "&texto:*"];
    words.extend(all.split(' '));
    redis.command::<()>(&words).await.unwrap();
    let variables = [("TEXTO_REDIS_PASSWORD", "secret"), ("TEXTO_REDIS_USERNAME", "texto")];
    let gateway = Gateway::start(binary(), &["--redis", &redis.address()], &variables).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut client = Client::connect(gateway.address).await.unwrap();
    assert_eq!(client.send(client.id, "to myself").await.unwrap(), Answer::Ack);
    assert_eq!(client.send(Uuid::new_v4(), "?").await.unwrap(), Answer::Error("ENOTCONN".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_is_named_as_one_that_was_never_there() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &[]).await;
    let set = async |rights: &[&str]| {
        let words = [&["ACL", "SETUSER", "texto", "on", ">secret"], rights].concat();
        redis.command::<()>(&words).await.unwrap();
    };
    let all = ["+@all", "&texto:*"];
    set(&all).await;
    let variables = [("TEXTO_REDIS_PASSWORD", "secret"), ("TEXTO_REDIS_USERNAME", "texto")];
    let gateway = Gateway::start(binary(), &["--redis", &redis.address()], &variables).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    for (rights, parts) in [
        ("-publish", ["PUBLISH", "ACL SETUSER texto +publish"]),
        ("-role", ["ROLE", "ACL SETUSER texto +role"]),
        ("-pubsub", ["PUBSUB NUMSUB", "ACL SETUSER texto +pubsub|numsub"]),
        ("-subscribe", ["SUBSCRIBE", "ACL SETUSER texto +subscribe"]),
        ("-@all", ["the server refuses", "ACL SETUSER texto +"]),
    ] {
        let mut client = Client::connect(gateway.address).await.unwrap();
        assert_eq!(client.send(client.id, "calm").await.unwrap(), Answer::Ack);
        set(&[rights]).await;
        // Nobody asks for counts without a reason, nor subscribes.
        client.post(Uuid::new_v4(), "?").await.unwrap();
        let _newcomer = Client::connect(gateway.address).await.unwrap();
        until("it is named", LIMIT, async || {
            let health = gateway.health().await.ok()?;
            let reason = health["checks"]["redis:links"][0]["observedValue"][0]["reason"].as_str()?.to_owned();
            parts.iter().all(|part| reason.contains(part)).then_some(())
        })
        .await
        .unwrap_or_else(|error| panic!("{rights}: {error}: {:#?}", gateway.log()));
        if rights == "-publish" {
            fails_because(&gateway, &parts).await;
            assert!(gateway.log().iter().any(|line| line.contains("link to Redis lost") && line.contains(parts[1])));
        }
        set(&all).await;
        gateway.wait_synced(1, LIMIT).await.unwrap();
    }
    assert!(failures(&gateway, &redis).await < 100.0, "it is not hammered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_rotated_in_redis_and_in_its_file_is_not_noticed() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &[]).await;
    let file = folder.path().join("password");
    std::fs::write(&file, "old\n").unwrap();
    let set = async |words: &[&str]| {
        let words = [&["ACL", "SETUSER", "texto", "on", "+@all", "&*"], words].concat();
        redis.command::<()>(&words).await.unwrap();
    };
    set(&[">old"]).await;
    let path = file.to_str().unwrap().to_owned();
    let variables = [("TEXTO_REDIS_PASSWORD_FILE", path.as_str()), ("TEXTO_REDIS_USERNAME", "texto")];
    let gateway = Gateway::start(binary(), &["--redis", &redis.address()], &variables).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut client = Client::connect(gateway.address).await.unwrap();
    set(&[">new"]).await;
    std::fs::write(&file, "new\r\n").unwrap();
    set(&["<old"]).await;
    assert_eq!(client.send(client.id, "undisturbed").await.unwrap(), Answer::Ack);
    assert_eq!(failures(&gateway, &redis).await, 0.0);
    redis.command::<()>(&["CLIENT", "KILL", "USER", "texto"]).await.unwrap();
    until("it is connected anew", LIMIT, async || (failures(&gateway, &redis).await > 0.0).then_some(()))
        .await
        .unwrap();
    assert_eq!(client.send(client.id, "with the new one").await.unwrap(), Answer::Ack);
    assert_eq!(failures(&gateway, &redis).await, 1.0, "the new one was taken at once");

    // Somebody takes the file away: what was read last is used, and that is said once.
    std::fs::remove_file(&file).unwrap();
    for lost in 2..5 {
        redis.command::<()>(&["CLIENT", "KILL", "USER", "texto"]).await.unwrap();
        let again = async || (failures(&gateway, &redis).await >= f64::from(lost)).then_some(());
        until("it is lost again", LIMIT, again).await.unwrap();
        gateway.wait_synced(1, LIMIT).await.unwrap();
    }
    let said = gateway.log().iter().filter(|line| line.contains("can't be read again")).count();
    assert_eq!(said, 1, "{:#?}", gateway.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_was_renamed_is_named() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &["--rename-command", "PUBLISH", "hidden"]).await;
    let gateway = Gateway::start(binary(), &["--redis", &redis.address()], &[]).await.unwrap();
    fails_because(&gateway, &["does not know the command PUBLISH", "not renamed"]).await;
}

/// A Kubernetes Service, or a proxy, in front of a master and its replica.
#[tokio::test(flavor = "multi_thread")]
async fn one_address_for_several_servers_is_named_and_nobody_is_let_in() {
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let servers = [redis(&one, &[]).await, redis(&other, &[]).await];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let targets = servers.each_ref().map(RedisServer::address);
    let proxy = tokio::spawn(async move {
        for target in targets.iter().cycle() {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let Ok(mut upstream) = TcpStream::connect(target).await else { return };
            tokio::spawn(async move { copy_bidirectional(&mut stream, &mut upstream).await.ok() });
        }
    });
    let gateway = Gateway::start(binary(), &["--redis", &address], &[]).await.unwrap();
    fails_because(&gateway, &["different servers", "--sentinels"]).await;
    proxy.abort();
}

/// Batches follow one another without waiting for answers, so that distance costs time and not throughput.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_far_away_has_many_batches_under_way() {
    const ROUND_TRIP: Duration = Duration::from_millis(500);
    /// What one client may have unanswered.
    const EACH: usize = 64;
    /// As many as eight batches hold.
    const CLIENTS: usize = 8 * 512 / EACH;
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &[]).await;
    let proxy = Proxy::start(&redis.address()).await.unwrap();
    let arguments = ["--redis", &proxy.address.to_string(), "--heartbeat-timeout", "5s", "--send-timeout", "20s"];
    let gateway = Gateway::start(binary(), &arguments, &[]).await.unwrap();
    gateway.wait_ready(LIMIT).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(gateway.address).await.unwrap());
    }
    proxy.delay(ROUND_TRIP / 2);
    let began = Instant::now();
    let mut requests = Vec::new();
    for client in &mut clients {
        for _ in 0..EACH {
            requests.push(client.post(client.id, "to myself").await.unwrap());
        }
    }
    for (client, requests) in clients.iter_mut().zip(requests.chunks(EACH)) {
        for request in requests {
            assert_eq!(client.answer(*request).await.unwrap(), Answer::Ack);
        }
    }
    let took = began.elapsed();
    // There and back with the messages, and perhaps with their receipts; one batch at a time it is eight times that.
    assert!(took >= ROUND_TRIP, "{took:?}: the proxy does not delay");
    assert!(took < 6 * ROUND_TRIP, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_given_for_a_redis_is_called_one() {
    let folder = TempDir::new().unwrap();
    let redis = redis(&folder, &[]).await;
    let second = TempDir::new().unwrap();
    let config = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", redis.port);
    let port = free_port().unwrap();
    let sentinel = RedisServer::start_sentinel("127.0.0.1", port, second.path(), &config, None).await.unwrap();
    let gateway = Gateway::start(binary(), &["--redis", &sentinel.address()], &[]).await.unwrap();
    fails_because(&gateway, &["is a Sentinel", "--sentinels"]).await;
    let gateway = Gateway::start(binary(), &["--sentinels", &redis.address()], &[]).await.unwrap();
    fails_because(&gateway, &["is a Redis", "--redis"]).await;
}

/// A port that was mixed up with another: here with a gateway's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_redis_is_called_so_in_one_line() {
    let other = Gateway::start(binary(), &[], &[]).await.unwrap();
    for flag in ["--redis", "--sentinels"] {
        let gateway = Gateway::start(binary(), &[flag, &other.address.to_string()], &[]).await.unwrap();
        fails_because(&gateway, &["does not speak the protocol of Redis"]).await;
        let health = gateway.health().await.unwrap();
        assert!(!health["checks"]["broker"][0]["output"].as_str().unwrap().contains('\n'), "{health:#}");
    }
}
