//! Disk and network beside QEMU's virtio devices: instructions of the nested host for an operation or a MiB, in one
//! host and one run.
//!
//! What counts is the time on the host's clock, which counts instructions, less the time that the host's processor was
//! idle. Guest, VMM and the other end of the network share that processor. A command runs in the guest with a small and
//! with a large amount of work: the difference is that of the work alone, without the command's start and end. iperf3
//! is busy for whole seconds whatever it is to send: it runs for one, of which its start is a hundredth.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tesseractl::bench::{BEST_PEER, Vmm};
use testing::figures::{Entry, counted};
use testing::lab::{Lab, artifact, program, programs};
use testing::scratch::Scratch;
use testing::wait::until;

use crate::peer::{self, GUEST_PROGRAMS, HOST_PROGRAMS, busy, shell};

/// Three guests boot, and each does nearly everything twice.
const LIMIT: Duration = Duration::from_secs(1700);

/// The guest's first program.
const INIT: &str = include_str!("devices/init.sh");

const MEMORY: &str = "512M";
const DISK_MIB: usize = 256;
const COMMAND_LINE: &str =
    "console=ttyAMA0 console=ttyS0 quiet nokaslr norandmaps cryptomgr.notests rdinit=/bench/init";

/// The disk past the guest's page cache.
const FIO: &str = "/bench/fio --name=j --filename=/dev/vda --size=256M --norandommap";
const IPERF: &str = "/bench/iperf3 -c 198.51.100.1 --json --interval 0";

/// Something that is measured.
struct Row {
    name: &'static str,
    unit: &'static str,
    /// Its command, before the amount of work.
    command: String,
    /// Units of work; or one number of seconds, where the command says how much it has done in them.
    amounts: &'static [u32],
}

impl Row {
    fn figure(&self) -> Entry {
        let kind = if self.command.starts_with(FIO) { "disk" } else { "network" };
        let unit = format!("instructions for one {}", self.unit);
        counted("devices", kind, &unit).case(self.name).guest(MEMORY, 1)
    }
}

/// What a command took and did.
#[derive(Clone, Copy, Debug)]
struct Cost {
    instructions: u64,
    units: f64,
}

/// By a row's name and the amount of work.
type Costs = HashMap<(String, u32), Cost>;

fn rows() -> Vec<Row> {
    let disk = |name, how: &str, unit, amounts| Row {
        name,
        unit,
        command: format!("{FIO} {how} --number_ios="),
        amounts,
    };
    let network = |name, unit, how: &str| Row {
        name,
        unit,
        command: format!("{IPERF} {how} --time "),
        amounts: &[1],
    };
    let (few, many, bulk): (&[u32], &[u32], &[u32]) = (&[200, 2200], &[400, 4400], &[8, 2008]);
    let sync = "--direct=1 --ioengine=psync";
    // More than the disk has, again and again. The buffer in a huge page, or a request has some number of segments that
    // differs from run to run.
    let bulk_sync = format!("{sync} --bs=1M --io_size=2G --mem=shmhuge --hugepage-size=2M");
    let deep = "--direct=1 --ioengine=libaio --iodepth=32";
    vec![
        disk("random read", &format!("{sync} --bs=4k --rw=randread"), "4 KiB", few),
        disk("random write", &format!("{sync} --bs=4k --rw=randwrite"), "4 KiB", few),
        disk("random read, 32 deep", &format!("{deep} --bs=4k --rw=randread"), "4 KiB", many),
        disk("random write, 32 deep", &format!("{deep} --bs=4k --rw=randwrite"), "4 KiB", many),
        disk("sequential read", &format!("{bulk_sync} --rw=read"), "MiB", bulk),
        disk("sequential write", &format!("{bulk_sync} --rw=write"), "MiB", bulk),
        disk("fsync", "--ioengine=psync --bs=4k --rw=randwrite --fsync=1", "write", &[100, 1100]),
        network("TCP to the host", "MiB", ""),
        network("TCP to the guest", "MiB", "--reverse"),
        network("UDP of 64 bytes", "packet", "--udp --bitrate 0 --length 64"),
        Row {
            name: "round trip",
            unit: "ping",
            command: "/bench/ping -q -f 198.51.100.1 -c ".to_owned(),
            amounts: &[100, 1100],
        },
    ]
}

/// A VMM with its devices.
struct Devices {
    name: &'static str,
    command: Command,
}

impl Devices {
    fn tessera(initrd: &Path, disk: &Path) -> Self {
        let mut command = Command::new(program("tessera"));
        command.arg("run").arg("--kernel").arg(artifact("Image")).arg("--initrd").arg(initrd);
        command.args(["--memory", MEMORY, "--cpus", "1", "--cmdline", COMMAND_LINE]);
        command.arg("--disk").arg(disk).args(["--net", "tap=tap0"]);
        Self { name: "tessera", command }
    }

    /// QEMU's machine for KVM guests ("virt", docs/system/arm/virt.rst) with a disk on a thread of its own (`thread`),
    /// whose file is opened with O_DIRECT, and a tap.
    fn qemu(name: &'static str, initrd: &Path, disk: &Path, thread: &str, vhost: &str) -> Self {
        let mut command = peer::program("qemu-system-aarch64");
        let drive =
            format!("if=none,id=disk,format=raw,cache=none,aio=native,file={}", disk.display());
        let tap = format!("tap,id=net,ifname=tap0,script=no,downscript=no,vhost={vhost}");
        command.args([
            "-M",
            "virt,gic-version=3",
            "-cpu",
            "host",
            "-accel",
            "kvm",
            "-smp",
            "1",
            "-m",
            MEMORY,
        ]);
        command.args(["-nodefaults", "-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(artifact("Image")).arg("-initrd").arg(initrd);
        command.args(["-append", COMMAND_LINE]);
        command.args(["-object", &format!("iothread,id={thread}"), "-drive", &drive]);
        command.args(["-device", "virtio-blk-pci,drive=disk,iothread=thread,romfile="]);
        command.args(["-netdev", &tap, "-device", "virtio-net-pci,netdev=net,romfile="]);
        Self { name, command }
    }

    /// Runs the guest to its end.
    fn measure(mut self, server: &mut Server) -> Costs {
        let errors = File::create("/tmp/errors").unwrap();
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        until("the tap", || Path::new("/sys/class/net/tap0").exists().then_some(()));
        shell("ip addr add 198.51.100.1/24 dev tap0 && ip link set tap0 up");
        let costs = follow(self.name, BufReader::new(child.stdout.take().unwrap()), server);
        let status = child.wait().unwrap();
        let said = fs::read_to_string("/tmp/errors").unwrap();
        assert!(status.success() && costs.is_some(), "{} ended with {status}: {said}", self.name);
        costs.unwrap()
    }
}

/// Reads the guest's console and the host's clock. `None` when the guest did not come to its end.
fn follow(vmm: &str, console: impl BufRead, server: &mut Server) -> Option<Costs> {
    let mut costs = Costs::new();
    let (mut begun, mut instructions, mut said) = (0, 0, String::new());
    let mut is_done = false;
    for line in console.lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        server.renew();
        match *words {
            ["BEGIN"] => {
                said.clear();
                begun = busy();
            }
            ["END"] => instructions = busy() - begun,
            ["WORK", name, amount] => {
                let amount = amount.parse().unwrap();
                let units = units(&said).unwrap_or(f64::from(amount));
                println!("{vmm}: {name} {amount}: {instructions} instructions, {units} units");
                costs.insert((name.replace('_', " "), amount), Cost { instructions, units });
            }
            ["FAILED", name] => println!("{vmm}: {name} failed: {said}"),
            // A kernel that powers off may say so: the console is read to its end.
            ["DONE"] => is_done = true,
            _ => said += &format!("{line}\n"),
        }
    }
    if !is_done {
        println!("{vmm}: {said}");
    }
    is_done.then_some(costs)
}

/// The MiB or packets that iperf3 says were received. `None` for what is no report of its.
fn units(said: &str) -> Option<f64> {
    let report: Value = serde_json::from_str(said).ok()?;
    let received = &report["end"]["sum_received"];
    match received["packets"].as_f64() {
        Some(packets) => Some(packets - received["lost_packets"].as_f64()?),
        None => Some(received["bytes"].as_f64()? / f64::from(1 << 20)),
    }
}

/// The guest's initramfs: the lab's, with drivers of disk and network, and the programs.
fn initrd(scratch: &Scratch, rows: &[Row]) -> PathBuf {
    let jobs: String = rows
        .iter()
        .flat_map(|row| row.amounts.iter().map(move |amount| (row, amount)))
        .map(|(row, amount)| {
            let name = row.name.replace(' ', "_");
            format!("{name} {amount} {}{amount}\n", row.command)
        })
        .collect();
    peer::initrd(scratch, &["initrd.cpio", "agent.cpio"], (GUEST_PROGRAMS, "bench"), |bench| {
        fs::write(bench.join("jobs"), jobs).unwrap();
        fs::write(bench.join("init"), INIT).unwrap();
    })
}

/// A disk in memory, so that its own cost is that of a copy.
fn disk(scratch: &Scratch) -> PathBuf {
    let path = scratch.join("disk");
    let mut file = File::create(&path).unwrap();
    (0..DISK_MIB).for_each(|_| file.write_all(&vec![0x5a; 1 << 20]).unwrap());
    path
}

/// Loads drivers of the host that Debian's kernel has as modules.
fn load(modules: &[&str]) {
    for module in modules {
        shell(&format!(
            "xzcat $(find /lib/modules/ /artifacts/modules/ -name {module}.ko.xz | head -n 1) >/tmp/module && \
             insmod /tmp/module && rm /tmp/module"
        ));
    }
}

/// The server at the network's other end, ended when dropped.
struct Server(Child);

impl Server {
    /// It serves one client.
    fn start() -> Self {
        Self(
            peer::program("iperf3")
                .args(["-s", "--one-off"])
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Starts another one in the place of one that has ended.
    fn renew(&mut self) {
        if self.0.try_wait().unwrap().is_some() {
            *self = Self::start();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Instructions for one unit of a row.
fn each(costs: &Costs, row: &Row) -> f64 {
    let cost = |amount: &u32| costs[&(row.name.to_owned(), *amount)];
    match row.amounts {
        [small, large] => {
            let (small, large) = (cost(small), cost(large));
            (large.instructions - small.instructions) as f64 / (large.units - small.units)
        }
        other => other.iter().map(cost).map(|cost| cost.instructions as f64 / cost.units).sum(),
    }
}

#[test]
fn disk_and_network_beside_those_of_qemu() {
    let lab = Lab::new().counting_instructions().timeout(LIMIT);
    lab.file(&programs("host"), HOST_PROGRAMS).file(&programs("guest"), GUEST_PROGRAMS).run(|| {
        load(&["tun", "vhost_iotlb", "vhost", "tap", "vhost_net"]);
        let scratch = Scratch::new();
        let rows = rows();
        let (initrd, disk) = (initrd(&scratch, &rows), disk(&scratch));
        let mut server = Server::start();
        let (initrd, disk) = (initrd.as_path(), disk.as_path());
        let own = Devices::tessera(initrd, disk).measure(&mut server);
        let others = [
            Devices::qemu("QEMU", initrd, disk, "thread", "off"),
            Devices::qemu("no polling, vhost", initrd, disk, "thread,poll-max-ns=0", "on"),
        ]
        .map(|vmm| (vmm.name, vmm.measure(&mut server)));

        let qemu = peer::qemu();
        println!("QEMU {}", qemu.version);
        for row in &rows {
            let own = each(&own, row);
            row.figure().at_most_of(1.0, BEST_PEER, None).record(own);
            let mut line = format!("{:22} {:7} {own:9.0}", row.name, row.unit);
            for (name, costs) in &others {
                let cost = each(costs, row);
                let variant = if *name == qemu.name { "" } else { name };
                row.figure().of(&Vmm { variant: variant.to_owned(), ..qemu.clone() }).record(cost);
                line += &format!("  {name} {cost:9.0} {:5.2}", own / cost);
            }
            println!("{line}");
        }
    });
}
