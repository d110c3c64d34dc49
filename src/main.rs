//! The program: arguments, logging, signals, exit code. Everything else is in the library.

use std::io::{ErrorKind, Write};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use texto::access::mint;
use texto::check;
use texto::config::Config;
use texto::config::cli::{CheckArgs, Cli, Command, ServeArgs, SessionKeyChange};
use texto::operate::drain::Shutdown;
use texto::operate::healthcheck;
use texto::operate::logging::Log;
#[cfg(feature = "manual")]
use texto::operate::manual;
use texto::operate::output;
use texto::operate::service_manager::ServiceManager;
use texto::operate::tasks::Tasks;
use texto::resume::key_file::{self, Change};
use texto::resume::keys as session_keys;
use texto::server::{self, EXIT_SOFTWARE, ServerError};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// It gives memory back to the system when a burst is over, which glibc's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The exit code for a configuration that can't be used, as in sysexits.h (EX_CONFIG).
const EXIT_CONFIG: u8 = 78;
/// How long the end waits for the log's last lines.
const LAST_LINES: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let log = match Log::to_stderr() {
        Ok(log) => log,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "texto: the log can't be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = std::panic::catch_unwind(AssertUnwindSafe(|| command(cli, &log)));
    let code = code.unwrap_or_else(|_| fail(&log, "it panicked, which is a fault of Texto's", EXIT_SOFTWARE));
    log.finish(LAST_LINES);
    code
}

fn command(cli: Cli, log: &Log) -> ExitCode {
    match cli.command {
        Some(Command::Healthcheck(args)) => match healthcheck::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(log, &error.to_string(), 1),
        },
        Some(Command::Check(args)) => look(&args, log),
        Some(Command::SessionKey { change }) => told(log, session_key(change)),
        Some(Command::Token(args)) => {
            let token = mint::run(&args).map_err(anyhow::Error::from);
            told(log, token.and_then(|token| output::line(token).context("standard output")))
        }
        #[cfg(feature = "chat")]
        Some(Command::Chat(args)) => told(log, chat(&args)),
        #[cfg(feature = "manual")]
        Some(Command::Completions { shell }) => told(log, print(&manual::completions(shell))),
        #[cfg(feature = "manual")]
        Some(Command::Man { command }) => {
            let page = manual::page(command.as_deref()).map_err(anyhow::Error::from);
            told(log, page.and_then(|page| print(&page)))
        }
        #[cfg(feature = "lab")]
        Some(Command::Chaos(args)) => judge(log, texto_lab::chaos::run(&args)),
        #[cfg(feature = "lab")]
        Some(Command::Demo(args)) => judge(log, texto_lab::demo::run(&args)),
        Some(Command::Serve(args)) => serve(&args, log),
        None => serve(&cli.serve, log),
    }
}

/// Looks at a deployment, and says by the exit code how it is.
fn look(args: &CheckArgs, log: &Log) -> ExitCode {
    let findings = Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        let findings = runtime.block_on(check::run(args, &std::env::vars_os().collect()));
        runtime.shutdown_background(); // A name server that does not answer keeps nobody from ending.
        let text = if args.json { findings.json() } else { findings.to_string() };
        output::line(text).context("standard output")?;
        Ok(findings)
    });
    findings.map_or_else(|error| fail(log, &format!("{error:#}"), 2), |findings| ExitCode::from(findings.exit_code()))
}

fn told(log: &Log, result: anyhow::Result<()>) -> ExitCode {
    result.map_or_else(|error| fail(log, &format!("{error:#}"), 1), |()| ExitCode::SUCCESS)
}

#[cfg(feature = "manual")]
fn print(text: &[u8]) -> anyhow::Result<()> {
    output::all(text).context("standard output")
}

/// Talks to somebody. It is no server, and has no log.
#[cfg(feature = "chat")]
fn chat(args: &texto::chat::ChatArgs) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let ended = runtime.block_on(texto::chat::run(args));
    runtime.shutdown_background(); // A name server that does not answer keeps nobody from ending.
    ended
}

/// Changes a file of keys, or prints a new one.
fn session_key(change: Option<SessionKeyChange>) -> anyhow::Result<()> {
    let (change, file) = match change {
        Some(SessionKeyChange::Add { file }) => (Change::Add, file),
        Some(SessionKeyChange::Sign { file }) => (Change::Sign, file),
        Some(SessionKeyChange::Drop { file }) => (Change::Drop, file),
        None => return output::line(session_keys::new_line()?).context("standard output"),
    };
    Ok(key_file::change(&file, change)?)
}

/// Runs servers and gateways of its own, and says by the exit code whether the promises were kept.
#[cfg(feature = "lab")]
#[tokio::main]
async fn judge(log: &Log, run: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    // Where it can't be raised, a smaller run still works, and a larger one says what is missing.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    match run.await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => fail(log, "a promise was broken", 1),
        Err(error) if error.is::<texto_lab::output::Unread>() => ExitCode::SUCCESS,
        Err(error) => fail(log, &format!("{error:#}"), 2),
    }
}

fn fail(log: &Log, text: &str, code: u8) -> ExitCode {
    log.line(&format!("texto: {text}"));
    ExitCode::from(code)
}

fn serve(args: &ServeArgs, log: &Log) -> ExitCode {
    let config = match Config::new(args, &std::env::vars_os().collect()) {
        Ok(config) => config,
        Err(errors) => return fail(log, &errors.to_string(), EXIT_CONFIG),
    };
    log.start(config.log_format, &config.log_filter);
    let result = Runtime::new().map_err(anyhow::Error::from).and_then(|runtime| {
        let result = runtime.block_on(run(config, log));
        runtime.shutdown_background(); // A name server that does not answer keeps nobody from ending.
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(log, &format!("{error:#}"), error.downcast_ref().map_or(1, ServerError::exit_code)),
    }
}

async fn run(config: Config, log: &Log) -> anyhow::Result<()> {
    let listener = bind(config.listen, "--listen (TEXTO_LISTEN)").await?;
    let admin = match config.admin_listen {
        Some(address) => Some(bind(address, "--admin-listen (TEXTO_ADMIN_LISTEN)").await?),
        None => None,
    };
    let shutdown = Shutdown::default();
    let signals = shutdown.on_signals()?;
    let manager = ServiceManager::from_environment();
    tokio::select! {
        result = server::run(config, listener, admin, shutdown, Tasks::default(), log, manager) => Ok(result?),
        never = signals => match never {},
    }
}

async fn bind(address: std::net::SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let why = match error.kind() {
            ErrorKind::AddrInUse => "something listens there already",
            ErrorKind::AddrNotAvailable => "this host does not have that address",
            ErrorKind::PermissionDenied => "this user may not: ports below 1024 take a right",
            _ => "the system refuses it",
        };
        anyhow::Error::from(error).context(format!("can't listen on {address}, given by {flag}: {why}"))
    })
}
