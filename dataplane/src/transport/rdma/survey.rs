//! Looks at the cards of this host.

use super::discover::{Device, Gid, GidKind, Port};
use super::library::{Library, library};
use rdma_sys::{
    IBV_GID_TYPE_ROCE_V2, ibv_context, ibv_device, ibv_device_attr, ibv_gid_entry, ibv_port_attr,
    ibv_port_state, ibv_transport_type,
};
use std::ffi::CStr;
use std::io;

/// A port's link layer is Ethernet, thus RoCE; its name is not among the bindings.
pub(super) const LINK_LAYER_ETHERNET: u8 = 2;

pub(super) fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// Calls `each` with every device of this host. No device, or no RDMA in the kernel, is an error that says so.
pub(super) fn for_each_device(
    mut each: impl FnMut(&'static Library, *mut ibv_device, &str),
) -> Result<(), String> {
    let library = library()?;
    let mut count = 0;
    // SAFETY: the list is NULL or has `count` entries that are valid until it is freed below; a device's name
    // is a C string inside of it.
    unsafe {
        let list = (library.get_device_list)(&raw mut count);
        if list.is_null() {
            let error = last_error();
            return Err(match error.raw_os_error() {
                Some(libc::ENOSYS) => {
                    "this kernel has no RDMA: load ib_uverbs and the card's driver".to_owned()
                }
                _ => format!("the RDMA devices cannot be listed: {error}"),
            });
        }
        for index in 0..usize::try_from(count).unwrap_or(0) {
            let device = *list.add(index);
            let name = CStr::from_ptr((*device).name.as_ptr()).to_string_lossy();
            each(library, device, &name);
        }
        (library.free_device_list)(list);
    }
    Ok(())
}

/// The cards of this host, for [`discover`](super::discover).
pub(super) fn survey() -> Result<Vec<Device>, String> {
    let mut devices = Vec::new();
    for_each_device(|library, device, name| {
        // SAFETY: `device` is valid during the call; the context is closed before it ends, and the structs that
        // the library fills are plain data for which zero is valid.
        unsafe {
            let iwarp = (*device).transport_type == ibv_transport_type::IBV_TRANSPORT_IWARP;
            let mut found = Device { name: name.to_owned(), iwarp, ports: Vec::new() };
            let context = (library.open_device)(device);
            if !context.is_null() {
                let mut attr: ibv_device_attr = std::mem::zeroed();
                if (library.query_device)(context, &raw mut attr) == 0 {
                    found.ports =
                        (1..=attr.phys_port_cnt).filter_map(|n| port(library, context, n)).collect();
                }
                (library.close_device)(context);
            }
            devices.push(found);
        }
    })?;
    Ok(devices)
}

/// What is known of port `number`.
///
/// # Safety
/// `context` is an open device.
unsafe fn port(library: &Library, context: *mut ibv_context, number: u8) -> Option<Port> {
    // SAFETY: the device is open by contract; the library fills at most what it is told the size of.
    unsafe {
        let mut attr: ibv_port_attr = std::mem::zeroed();
        if (library.query_port)(context, number, &raw mut attr) != 0 {
            return None;
        }
        let mut table: Vec<ibv_gid_entry> = Vec::with_capacity(attr.gid_tbl_len.clamp(0, 1024) as usize);
        let size = size_of::<ibv_gid_entry>();
        let have = (library.query_gid_table)(context, table.as_mut_ptr(), table.capacity(), 0, size);
        table.set_len(usize::try_from(have).unwrap_or(0).min(table.capacity()));
        let gids = table.iter().filter(|entry| entry.port_num == number.into()).filter_map(|entry| {
            let roce2 = entry.gid_type == IBV_GID_TYPE_ROCE_V2;
            let kind = if roce2 { GidKind::Roce2 } else { GidKind::IbOrRoce1 };
            Some(Gid { index: u8::try_from(entry.gid_index).ok()?, bytes: entry.gid.raw, kind })
        });
        Some(Port {
            number,
            active: attr.state == ibv_port_state::IBV_PORT_ACTIVE,
            ethernet: attr.link_layer == LINK_LAYER_ETHERNET,
            mtu_bytes: 128 << attr.active_mtu.min(5),
            mbit_s: mbit_s(attr.active_width, attr.active_speed),
            lid: attr.lid,
            gids: gids.collect(),
        })
    }
}

/// A port's speed from the codes of its width and of the speed of each of its wires; 0 for codes that are not known.
fn mbit_s(width: u8, speed: u8) -> u32 {
    let wires = match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => 0,
    };
    let each = match speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => 0,
    };
    wires * each
}
