//! The program: arguments, logging, signals, exit code. Everything else is in the library.

use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use texto::cli::{Cli, Command, ServeArgs};
use texto::config::Config;
use texto::drain::Shutdown;
use texto::healthcheck;
use texto::logging::Log;
use texto::server::{self, EXIT_SOFTWARE, ServerError};
use texto::session_keys;
use texto::tasks::Tasks;
use texto_lab::output::{self, Unread};
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
        Some(Command::SessionKey) => match session_keys::new_line().map_err(anyhow::Error::from).and_then(output::line)
        {
            Err(error) if !error.is::<Unread>() => fail(log, &format!("{error:#}"), 1),
            _ => ExitCode::SUCCESS,
        },
        Some(Command::Chaos(args)) => judge(log, texto_lab::chaos::run(&args)),
        Some(Command::Demo(args)) => judge(log, texto_lab::demo::run(&args)),
        Some(Command::Serve(args)) => serve(&args, log),
        None => serve(&cli.serve, log),
    }
}

/// Runs servers and gateways of its own, and says by the exit code whether the promises were kept.
#[tokio::main]
async fn judge(log: &Log, run: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    // Where it can't be raised, a smaller run still works, and a larger one says what is missing.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    match run.await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => fail(log, "a promise was broken", 1),
        Err(error) if error.is::<Unread>() => ExitCode::SUCCESS,
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
    tokio::select! {
        result = server::run(config, listener, admin, shutdown, Tasks::default(), log) => Ok(result?),
        never = signals => match never {},
    }
}

async fn bind(address: std::net::SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("can't listen on {address}, given by {flag}: is it in use?"))
}
