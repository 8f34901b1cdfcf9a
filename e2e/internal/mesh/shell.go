package mesh

// KubectlCommand is how a shell calls kubectl as Kubectl does.
func (m *Mesh) KubectlCommand() []string {
	return []string{"ip", "netns", "exec", m.fabric.node.ID, m.bin + "/kubectl", "--kubeconfig", m.path("kubeconfig")}
}

// HelmCommand is how a shell calls Helm as Helm does.
func (m *Mesh) HelmCommand() []string {
	return []string{"ip", "netns", "exec", m.fabric.node.ID, "env", "HOME=" + m.dir, m.helm, "--kubeconfig", m.path("kubeconfig")}
}

// AgentCommand is how a shell calls the pod's pilot-agent in the pod.
func (p *Pod) AgentCommand() []string {
	return []string{"ip", "netns", "exec", p.ID, p.n.path("pilot-agent")}
}
