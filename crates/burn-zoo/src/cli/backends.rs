//! `burn-zoo backends`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::backend::{self, Backend, FoundDevice, Hardware};
use crate::bench::{DeviceSpeed, device_speed};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{End, Result, print_json, progress_bar};

#[derive(clap::Args)]
pub struct Arguments {
    /// Train and write with a small model on each device, and say which is fastest.
    #[arg(long)]
    bench: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    backends: Vec<BackendReport>,
    auto: AutoReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    fastest: Option<Fastest>,
}

/// The devices that were fastest.
#[derive(Serialize)]
struct Fastest {
    training: String,
    decoding: String,
}

#[derive(Serialize)]
struct BackendReport {
    name: &'static str,
    compiled_in: bool,
    devices: Vec<DeviceReport>,
}

#[derive(Serialize)]
struct DeviceReport {
    name: String,
    hardware: Hardware,
    description: String,
    #[serde(flatten)]
    speed: Option<DeviceSpeed>,
}

#[derive(Serialize)]
struct AutoReport {
    device: Option<String>,
    reason: String,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let mut backends: Vec<BackendReport> = Backend::ALL.map(describe).into();
    if arguments.bench {
        measure(&mut backends);
    }
    let report = Report {
        fastest: fastest(&backends),
        backends,
        auto: match backend::automatic() {
            Ok(automatic) => AutoReport {
                device: Some(automatic.device.name),
                reason: automatic.reason,
            },
            Err(error) => AutoReport {
                device: None,
                reason: error.to_string(),
            },
        },
    };
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&report);
    }
    Ok(End::Done)
}

fn describe(backend: Backend) -> BackendReport {
    let device = |found: FoundDevice| DeviceReport {
        name: found.name,
        hardware: found.hardware,
        description: found.description,
        speed: None,
    };
    BackendReport {
        name: backend.name(),
        compiled_in: backend.is_compiled_in(),
        devices: backend.devices().into_iter().map(device).collect(),
    }
}

/// Measures every device.
fn measure(backends: &mut [BackendReport]) {
    let devices = || backends.iter().flat_map(|backend| &backend.devices);
    let bar = progress_bar();
    bar.set_length(devices().count() as u64);
    for device in backends.iter_mut().flat_map(|backend| &mut backend.devices) {
        // A driver that fails has no speed; the others are measured.
        let speed =
            || -> Result<DeviceSpeed> { Ok(device_speed(&backend::find(&device.name)?.device)) };
        device.speed = match catch_unwind(AssertUnwindSafe(speed)) {
            Ok(Ok(speed)) => Some(speed),
            Ok(Err(error)) => {
                eprintln!("{}: {error}", device.name);
                None
            }
            Err(_) => {
                eprintln!("{}: the driver failed", device.name);
                None
            }
        };
        bar.inc(1);
    }
    bar.finish_and_clear();
}

fn fastest(backends: &[BackendReport]) -> Option<Fastest> {
    let by = |speed: fn(&DeviceSpeed) -> f64| {
        let devices = backends.iter().flat_map(|backend| &backend.devices);
        let speeds =
            devices.filter_map(|device| Some((&device.name, speed(device.speed.as_ref()?))));
        let fastest = speeds.max_by(|(_, a), (_, b)| a.total_cmp(b));
        fastest.map(|(name, _)| name.clone())
    };
    Some(Fastest {
        training: by(|speed| speed.train_tokens_per_second)?,
        decoding: by(|speed| speed.decode_tokens_per_second)?,
    })
}

fn print(report: &Report) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header = vec![
        "BACKEND",
        "COMPILED IN",
        "DEVICE",
        "HARDWARE",
        "DESCRIPTION",
    ];
    if report.fastest.is_some() {
        header.extend(["TRAINED TOK/S", "WRITTEN TOK/S"]);
    }
    table.set_header(header);
    for backend in &report.backends {
        let compiled_in = if backend.compiled_in { "yes" } else { "no" };
        let mut row = |device: [&str; 3], speed: Option<DeviceSpeed>| {
            let mut row = [backend.name, compiled_in, device[0], device[1], device[2]]
                .map(str::to_owned)
                .to_vec();
            if let Some(speed) = speed {
                let speeds = [
                    speed.train_tokens_per_second,
                    speed.decode_tokens_per_second,
                ];
                row.extend(speeds.map(|speed| format!("{speed:.0}")));
            }
            table.add_row(row);
        };
        for device in &backend.devices {
            let hardware = match device.hardware {
                Hardware::Gpu => "GPU",
                Hardware::Cpu => "processor",
                Hardware::SoftwareGpu => "software GPU",
            };
            row([&device.name, hardware, &device.description], device.speed);
        }
        if backend.devices.is_empty() {
            let advice = format!("build with --features {}", backend.name);
            let why = if backend.compiled_in {
                "no device found"
            } else {
                &advice
            };
            row(["-", "-", why], None);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    println!("{}", table.trim_fmt());
    let device = report.auto.device.as_deref().unwrap_or("nothing");
    println!("\nauto picks {device}: {}", report.auto.reason);
    if let Some(Fastest { training, decoding }) = &report.fastest {
        println!("fastest at training: {training}; at writing: {decoding}");
    }
}
