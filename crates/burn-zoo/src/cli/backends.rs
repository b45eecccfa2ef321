//! `burn-zoo backends`.

use crate::backend::{self, Backend, FoundDevice, Hardware};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{End, Result, print_json};

#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    backends: Vec<BackendReport>,
    auto: AutoReport,
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
}

#[derive(Serialize)]
struct AutoReport {
    device: Option<String>,
    reason: String,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    let report = Report {
        backends: Backend::ALL.map(describe).into(),
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
    };
    BackendReport {
        name: backend.name(),
        compiled_in: backend.is_compiled_in(),
        devices: backend.devices().into_iter().map(device).collect(),
    }
}

fn print(report: &Report) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "BACKEND",
        "COMPILED IN",
        "DEVICE",
        "HARDWARE",
        "DESCRIPTION",
    ]);
    for backend in &report.backends {
        let compiled_in = if backend.compiled_in { "yes" } else { "no" };
        let mut row = |device: [&str; 3]| {
            table.add_row([backend.name, compiled_in, device[0], device[1], device[2]]);
        };
        for device in &backend.devices {
            let hardware = match device.hardware {
                Hardware::Gpu => "GPU",
                Hardware::Cpu => "processor",
                Hardware::SoftwareGpu => "software GPU",
            };
            row([&device.name, hardware, &device.description]);
        }
        if backend.devices.is_empty() {
            let advice = format!("build with --features {}", backend.name);
            row([
                "-",
                "-",
                if backend.compiled_in {
                    "no device found"
                } else {
                    &advice
                },
            ]);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    println!("{}", table.trim_fmt());
    let device = report.auto.device.as_deref().unwrap_or("nothing");
    println!("\nauto picks {device}: {}", report.auto.reason);
}
