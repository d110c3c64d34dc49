//! Owns the containers of the stack, by the docker command.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use texto_lab::http;
use texto_lab::process::until;

/// Runs docker and gives what it printed.
pub(crate) fn docker(words: &[&str]) -> Result<String> {
    let output = Command::new("docker").args(words).output().context("docker can't be run")?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "docker {}: {}", words.join(" "), error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Builds the image `name` by a Dockerfile that needs no files, and gives its id.
pub(crate) fn build(name: &str, dockerfile: &str) -> Result<String> {
    let mut command = Command::new("docker");
    let mut build =
        command.args(["build", "-q", "-t", name, "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    build.stdin.take().context("no standard input")?.write_all(dockerfile.as_bytes())?;
    ensure!(build.wait()?.success(), "{name} can't be built");
    docker(&["image", "inspect", "-f", "{{.Id}}", name])
}

/// What a container wrote to its log, both streams.
pub(crate) fn log(container: &str) -> Result<String> {
    let output = Command::new("docker").args(["logs", container]).output()?;
    Ok([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

/// A compose project that is up.
#[derive(Debug)]
pub(crate) struct Project {
    name: String,
    /// The command of Docker Compose.
    compose: Vec<String>,
    /// Where clients connect: nginx's published port.
    pub front: SocketAddr,
    /// The gateways' containers.
    pub gateways: Vec<String>,
}

impl Project {
    /// Looks at the project `name`.
    pub(crate) fn find(name: &str, compose: Vec<String>) -> Result<Self> {
        let (front, gateways) = (([127, 0, 0, 1], 0).into(), Vec::new());
        let mut project = Self { name: name.to_owned(), compose, front, gateways };
        let port = docker(&["port", &project.container("nginx")?, "8398/tcp"])?;
        let port = port.lines().next().and_then(|line| line.rsplit(':').next()?.parse().ok());
        project.front.set_port(port.context("nginx publishes no port")?);
        project.gateways = project.containers("gateway")?;
        Ok(project)
    }

    /// Runs Docker Compose, which knows files and project from its variables.
    pub(crate) fn compose(&self, words: &[&str]) -> Result<()> {
        let (program, first) = self.compose.split_first().context("no command of Docker Compose")?;
        let output = Command::new(program).args(first).args(words).output().context("Docker Compose can't be run")?;
        ensure!(output.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// The names of a service's containers, running or not.
    pub(crate) fn containers(&self, service: &str) -> Result<Vec<String>> {
        let project = format!("label=com.docker.compose.project={}", self.name);
        let service = format!("label=com.docker.compose.service={service}");
        let names = docker(&["ps", "-a", "--format", "{{.Names}}", "--filter", &project, "--filter", &service])?;
        let mut names: Vec<_> = names.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// The only container of a service.
    pub(crate) fn container(&self, service: &str) -> Result<String> {
        let names = self.containers(service)?;
        names.into_iter().next().with_context(|| format!("there is no container of {service}"))
    }

    /// A network's full name.
    pub(crate) fn network(&self, network: &str) -> String {
        format!("{}_{network}", self.name)
    }

    /// A container's address in a network.
    pub(crate) fn address(&self, container: &str, network: &str) -> Result<IpAddr> {
        let format = format!("{{{{(index .NetworkSettings.Networks {:?}).IPAddress}}}}", self.network(network));
        let address = docker(&["inspect", "-f", &format, container])?;
        address.parse().with_context(|| format!("{container} has no address in {network}"))
    }

    /// `/readyz` of a gateway, from inside: the status, and what it says.
    pub(crate) async fn health(&self, gateway: &str) -> Result<(u16, Value)> {
        let address = SocketAddr::new(self.address(gateway, "observe")?, 9398);
        let answer = http::get(address, "/readyz", "").await?;
        Ok((answer.status, serde_json::from_str(&answer.body)?))
    }

    /// Open sessions on a gateway.
    pub(crate) async fn sessions(&self, gateway: &str) -> Result<u64> {
        let (_, health) = self.health(gateway).await?;
        health["checks"]["connections"][0]["observedValue"]["open"].as_u64().context("no sessions in /readyz")
    }

    /// The service that the gateways hold for the master.
    pub(crate) async fn master(&self) -> Result<String> {
        let (_, health) = self.health(&self.gateways[0]).await?;
        let address = health["checks"]["redis:master"][0]["observedValue"]["address"].as_str();
        Ok(address.and_then(|address| address.split(':').next()).context("no master in /readyz")?.to_owned())
    }

    /// Waits until every gateway passes every check: master, links, Sentinels.
    pub(crate) async fn wait_well(&self, limit: Duration) -> Result<()> {
        let all_pass = until("all gateways pass every check", limit, async || {
            for gateway in &self.gateways {
                let (_, health) = self.health(gateway).await.ok()?;
                let three = health["checks"]["redis:links"][0]["observedValue"].as_array()?.len() == 3;
                (health["status"] == "pass" && three).then_some(())?;
            }
            Some(())
        });
        if let Err(error) = all_pass.await {
            let mut seen = String::new();
            for gateway in &self.gateways {
                seen +=
                    &format!("\n{gateway}: {}", self.health(gateway).await.map_or(Value::Null, |(_, health)| health));
            }
            return Err(error.context(seen));
        }
        Ok(())
    }

    /// Waits until every Sentinel sees a living master, two replicas and the two other Sentinels.
    pub(crate) async fn wait_sentinels(&self, limit: Duration) -> Result<()> {
        const ASK: &str = "REDISCLI_AUTH=$(cat /run/secrets/sentinel_password) redis-cli --no-auth-warning -p 26379 \
                           --raw sentinel master mymaster | paste - - | tr '\\t' '='";
        const WANTED: [&str; 3] = ["flags=master", "num-slaves=2", "num-other-sentinels=2"];
        for service in ["sentinel-1", "sentinel-2", "sentinel-3"] {
            let container = self.container(service)?;
            until(&format!("{service} sees {WANTED:?}"), limit, async || {
                let seen = docker(&["exec", &container, "sh", "-c", ASK]).ok()?;
                WANTED.iter().all(|wanted| seen.lines().any(|line| line == *wanted)).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// After something went wrong: starts what is down and wakes what is frozen, so that the rest can be tried.
    pub(crate) async fn mend(&mut self) {
        let project = format!("label=com.docker.compose.project={}", self.name);
        let all = docker(&["ps", "-a", "--format", "{{.Names}}", "--filter", &project]).unwrap_or_default();
        for container in all.lines() {
            drop(docker(&["unpause", container]));
            drop(docker(&["start", container]));
        }
        if let Ok(gateways) = self.containers("gateway") {
            self.gateways = gateways;
        }
        drop(self.wait_well(Duration::from_secs(40)).await);
    }

    /// Waits until nginx lists this many gateways.
    pub(crate) async fn wait_listed(&self, count: usize, limit: Duration) -> Result<()> {
        let nginx = self.container("nginx")?;
        until(&format!("nginx lists {count} gateways"), limit, async || {
            let list = docker(&["exec", &nginx, "cat", "/tmp/texto/gateways.conf"]).ok()?;
            (list.matches(":8398 ").count() == count).then_some(())
        })
        .await
    }
}
