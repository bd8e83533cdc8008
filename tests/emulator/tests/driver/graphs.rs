//! Graphs of kernels.

use std::collections::BTreeSet;

use qwen2c_emulator::driver::*;

use crate::calls::{Device, Kernel, done, function, get, load};
use crate::kernels::KERNELS;
use crate::process::alone;

#[test]
fn a_graph_of_two_kernels_runs_as_often_as_it_is_launched() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let numbers: Vec<u32> = (0..32).collect();
        let (first, second) = (device.upload(&numbers), device.upload(&numbers));
        // first -> second: + 5; second -> first: * 2.
        let mut add = Kernel::new(function(module, "add").unwrap(), 32, &[first, second, 5]);
        let twice = Kernel::new(function(module, "twice").unwrap(), 32, &[second, first]);
        let graph = get(|out| cuGraphCreate(out, 0)).unwrap();
        let added = add.add_to(graph, &[]).unwrap();
        add.parameters.fill(0);
        twice.add_to(graph, &[added]).unwrap();
        let executable = get(|out| cuGraphInstantiateWithFlags(out, graph, 0)).unwrap();
        // What happens to the graph later does not concern what was instantiated from it.
        done(cuGraphDestroy(graph));
        done(cuGraphLaunch(executable, device.stream));
        done(cuGraphLaunch(executable, device.stream));
        done(cuGraphExecDestroy(executable));
        let expected: Vec<u32> = numbers.iter().map(|number| ((number + 5) * 2 + 5) * 2).collect();
        assert_eq!(device.download(first, 32), expected);
        done(cuMemFree_v2(first));
        done(cuMemFree_v2(second));
        done(cuModuleUnload(module));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.clean();
    let report = &outcome.report;
    assert_eq!((&report["launches"], &report["graph_launches"]), (&0.into(), &2.into()));
    assert_eq!(report["graph_kernels"], 4);
    assert_eq!(report["kernels"]["twice"]["calls"], 2);
}

#[test]
fn independent_nodes_run_in_any_order() {
    let mut results = BTreeSet::new();
    for seed in ["0", "1", "2", "3", "4", "5", "6", "7"] {
        let outcome = alone(&[("QWEN2C_EMULATOR_SEED", seed)], || {
            let device = Device::open();
            let module = load(KERNELS).unwrap();
            let numbers = device.upload(&[3]);
            // Without an edge between them it is open which comes first: 3 * 2 + 1 or (3 + 1) * 2.
            let add = Kernel::new(function(module, "add").unwrap(), 1, &[numbers, numbers, 1]);
            let twice = Kernel::new(function(module, "twice").unwrap(), 1, &[numbers, numbers]);
            let graph = get(|out| cuGraphCreate(out, 0)).unwrap();
            add.add_to(graph, &[]).unwrap();
            twice.add_to(graph, &[]).unwrap();
            let executable = get(|out| cuGraphInstantiateWithFlags(out, graph, 0)).unwrap();
            done(cuGraphLaunch(executable, device.stream));
            eprintln!("result {}", device.download(numbers, 1)[0]);
        });
        let Some(outcome) = outcome else { return };
        let line = outcome.said.lines().find_map(|line| line.strip_prefix("result ")).unwrap().to_owned();
        results.insert(line);
    }
    assert_eq!(results, BTreeSet::from(["7".to_owned(), "8".to_owned()]));
}

#[test]
fn bad_nodes_and_graphs_are_refused() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let exact = Kernel::new(function(module, "exact").unwrap(), 32, &[]);
        let refused = Err(Status::INVALID_VALUE);
        assert_eq!(get(|out| cuGraphCreate(out, 1)), refused);
        let (graph, other) = (get(|out| cuGraphCreate(out, 0)), get(|out| cuGraphCreate(out, 0)));
        let (graph, other) = (graph.unwrap(), other.unwrap());
        let node = exact.add_to(graph, &[]).unwrap();
        assert_eq!(exact.add_to(other, &[node]), refused, "a node of another graph");
        assert_eq!(exact.add_to(graph, &[node, node]), refused, "twice");
        assert_eq!(exact.add_to(graph, &[Handle(3)]), refused);
        assert_eq!(exact.add_to(node, &[]), refused);
        let too_many = Kernel { block: [33, 1, 1], ..exact.clone() };
        assert_eq!(too_many.add_to(graph, &[]), refused);
        assert_eq!(get(|out| cuGraphInstantiateWithFlags(out, graph, 4)), refused);
        let executable = get(|out| cuGraphInstantiateWithFlags(out, graph, 0)).unwrap();
        assert_eq!(cuGraphLaunch(graph, device.stream), Status::INVALID_VALUE);
        done(cuModuleUnload(module));
        assert_eq!(cuGraphLaunch(executable, device.stream), Status::INVALID_HANDLE);
        done(cuGraphExecDestroy(executable));
        assert_eq!(cuGraphExecDestroy(executable), Status::INVALID_VALUE);
        done(cuGraphDestroy(graph));
        assert_eq!(cuGraphDestroy(graph), Status::INVALID_VALUE);
        done(cuGraphDestroy(other));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    let why = "flags 0x4 are not emulated";
    outcome.refused("cuGraphInstantiateWithFlags", "CUDA_ERROR_INVALID_VALUE", why);
    outcome.refused("cuGraphAddKernelNode_v2", "CUDA_ERROR_INVALID_VALUE", "is named twice");
}
